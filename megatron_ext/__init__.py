"""Packed, response-only policy training on unmodified Megatron-Core, on CUDA or on a CPU.

The library knows Megatron and torch and nothing of the system around it: micro-batches come in packed, the loss comes
in as a callable. Importing this package does not import Megatron, so that `platform.install()` can run first.

A program of its own: one process per rank, two steps on packed rows, a checkpoint, and the model for transformers.

    import torch

    from megatron_ext.parallel.layout import Layout
    from megatron_ext.optimizer.optimizer import OptimizerOptions
    from megatron_ext.packing.micro_batch import PackInput, pack_sequences
    from megatron_ext.policy import MegatronPolicy
    from megatron_ext.packing.sums import LossSums
    from megatron_ext.parallel.topology import init_distributed, shutdown_distributed


    def nll(logprobs_N, entropy_N, micro_batch):  # sums: the step divides once, by the tokens of all ranks
        return LossSums(loss=-logprobs_N.sum(), num_tokens=logprobs_N.numel(), metrics={})


    def train(rank, port, hf_dir, out_dir):
        layout = Layout(tp=2)
        topology = init_distributed(rank, layout.world_size, "127.0.0.1", port, layout, seed=0)
        policy = MegatronPolicy(hf_dir, layout, topology, dtype=torch.float32, optimizer=OptimizerOptions())
        rows = [PackInput([5, 6, 7, 8], predict_from=2, predict_mask=[1, 1]), PackInput([9, 8, 7], 1, [0, 1])]
        for _ in range(2):
            step = policy.train_step([pack_sequences(rows)], nll, lr=1e-3, temperature=1.0)
            print(rank, step.loss, step.grad_norm)  # equal on every rank
        policy.save_checkpoint(f"{out_dir}/checkpoint")
        policy.save_hf(f"{out_dir}/hf")
        policy.close()
        shutdown_distributed()


    if __name__ == "__main__":
        torch.multiprocessing.spawn(train, (29500, "models/Qwen3-0.6B", "trained"), nprocs=2)
"""
