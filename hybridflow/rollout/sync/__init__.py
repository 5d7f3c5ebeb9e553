"""Engine's end of a weight sync: tensors are loaded into SGLang and verified there."""
