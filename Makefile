# Everything runs in .venv, which the first target that needs it creates and fills.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One test process per core, one thread each: results do not depend on how many cores there are.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n logical

.PHONY: quickstart quickstart-diffusion test test-slow quality style bench reproduce clean

quickstart: $(INSTALLED)  ## draw phantom lesions, train a small classifier on them, evaluate it, explain it
	$(BIN)/python -m dataset_scripts.phantom --num_images 2500 --image_size 64 \
		--output_dir data/quickstart --overwrite_output_dir
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml train_classifier.py --dataset_name data/quickstart \
		--model_name_or_path resnet18 --no_pretrained --image_size 64 --num_train_epochs 8 \
		--output_dir runs/quickstart --overwrite_output_dir
	$(BIN)/python explain.py --model_name_or_path runs/quickstart --dataset_name data/quickstart --max_samples 24 \
		--trap ruler --eval_batch_size 16 --output_dir runs/quickstart-explained --overwrite_output_dir

quickstart-diffusion: $(INSTALLED)  ## draw phantom lesions, train a small generator on them, leave a sheet of its samples
	$(BIN)/python -m dataset_scripts.phantom --num_images 8000 --images_per_lesion 1 --image_size 32 \
		--output_dir data/quickstart-diffusion --overwrite_output_dir
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml train_diffusion.py \
		--dataset_name data/quickstart-diffusion --preset 32-tiny \
		--output_dir runs/quickstart-diffusion --overwrite_output_dir

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED)
	$(PYTEST) -m slow

quality: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.fairness_speed
	$(BIN)/python -m benchmarks.diffusion_throughput
	$(BIN)/python -m benchmarks.explain_speed

reproduce: $(INSTALLED)  ## every released result; HAM10000=folder WEIGHTS=mobilenetv2_100.safetensors [FLAGS=--dry_run]
	$(BIN)/python -m release.reproduce --data_dir $(HAM10000) --weights $(WEIGHTS) $(FLAGS)

clean:
	rm -rf $(VENV)

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@
