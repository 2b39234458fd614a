"""The configurations that accelerate_configs/ offers, each used as its file says."""

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from test_launchers import REPOSITORY, TOY, run, start
from toy_runs import differences, final_state, free_port, run_to_end

CONFIGURATIONS = sorted((REPOSITORY / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_accelerate_reads_it_and_it_leaves_the_precision_to_the_script(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "no"
    values = yaml.safe_load(path.read_text())
    assert values["num_processes"] % values["num_machines"] == 0
    assert (values["distributed_type"] == "NO") == (values["num_processes"] == 1)


@pytest.mark.slow
def test_one_process_on_a_cpu(tmp_path):
    config = str(REPOSITORY / "accelerate_configs" / "cpu.yaml")
    run("accelerate", "launch", "--config_file", config, str(TOY), "--output_dir", "run", cwd=tmp_path)
    run_to_end(tmp_path / "plain")
    assert differences(final_state(tmp_path / "plain"), final_state(tmp_path / "run"))[1] == []


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="two nodes are played on one machine's CPUs")
def test_two_nodes_train_as_two_processes_on_one(tmp_path):
    config = str(REPOSITORY / "accelerate_configs" / "two_nodes.yaml")
    launch = ["accelerate", "launch", "--config_file", config, "--num_processes", "2"]
    launch += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    with start(*launch, "--machine_rank", "1", str(TOY), "--output_dir", "nodes", cwd=tmp_path) as second:
        text = run(*launch, "--machine_rank", "0", str(TOY), "--output_dir", "nodes", cwd=tmp_path)
        other = second.communicate(timeout=180)[0]
    assert second.returncode == 0, other
    assert "process 0 of 2" in text and "process 1 of 2" in other
    run_to_end(tmp_path / "one", processes=2)
    tensors, differing = differences(final_state(tmp_path / "one"), final_state(tmp_path / "nodes"))
    assert tensors > 60 and differing == []
