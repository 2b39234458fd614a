"""Loading by name, folder or Hub id; targets; the decode-once cache; augmentation."""
