"""What other trainers call our settings, so that a flag typed from habit is answered with ours.

``OURS`` are names for the same thing in the same unit; what is alike and counts something else stands in ``NONE``.
"""

from __future__ import annotations

OURS: dict[str, tuple[str, ...]] = {
    "batch_size": ("bs", "batch", "train_batch_size", "global_batch_size"),
    "beta1": ("adam_beta1",),
    "beta2": ("adam_beta2",),
    "clip": ("grad_clip", "gradient_clip", "max_grad_norm", "clip_grad_norm"),
    "context": ("block_size", "seq_len", "sequence_length", "max_seq_len", "max_length", "ctx", "n_ctx", "context_length"),
    "data": ("dataset", "text", "input", "train_file", "train_data", "file"),
    "device": ("accelerator", "gpu", "cuda"),
    "epsilon": ("eps", "adam_epsilon"),
    "evaluate_every": ("eval_interval", "eval_every", "eval_steps"),
    "feed_forward": ("intermediate_size", "d_ff", "ffn_dim", "mlp_dim", "hidden_dim"),
    "heads": ("n_head", "n_heads", "num_heads", "num_attention_heads"),
    "kv_heads": ("n_kv_heads", "num_key_value_heads", "num_kv_heads"),
    "keep": ("save_total_limit", "keep_checkpoints"),
    "layers": ("n_layer", "n_layers", "num_layers", "num_hidden_layers", "depth", "blocks"),
    "learning_rate": ("lr", "max_lr", "peak_lr", "rate"),
    "micro_batch_size": ("micro_batch", "per_device_train_batch_size", "per_device_batch_size"),
    "out": ("output", "output_dir", "out_dir", "save_dir", "run", "name"),
    "precision": ("dtype", "mixed_precision"),
    "preset": ("config_name", "size"),
    "resume": ("continue",),
    "rope_base": ("rope_theta", "theta"),
    "save_every": ("save_steps", "save_interval", "checkpoint_every"),
    "schedule": ("lr_scheduler", "lr_scheduler_type", "scheduler"),
    "seed": ("random_seed", "manual_seed"),
    "steps": ("max_steps", "iters", "max_iters", "iterations", "n_steps", "num_steps", "train_steps"),
    "threads": ("num_threads", "cpus", "workers"),
    "time": ("max_time", "budget", "duration"),
    "vocabulary_size": ("vocab_size", "vocab", "n_vocab"),
    "warmup_fraction": ("warmup_ratio",),
    "weight_decay": ("wd", "decay"),
    "width": ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "model_dim"),
}  # fmt: skip
NONE = {
    "dropout": "there is no dropout",
    **{name: f"--precision {name}" for name in ("bf16", "fp16", "fp32")},
    **dict.fromkeys(("amp", "autocast"), "--precision auto, bf16, fp16 or fp32"),
    **dict.fromkeys(
        ("epochs", "num_epochs", "num_train_epochs", "max_epochs", "n_epochs"),
        "--steps N or --time 1h: a run's length is in updates or in time, not in passes over the text",
    ),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "grad_accum", "accumulate", "accumulate_grad_batches"),
        "--micro-batch-size N: the sequences that one forward takes, --batch-size divided by that number",
    ),
    **dict.fromkeys(("minutes", "hours", "seconds"), "--time 5m"),
    **dict.fromkeys(
        ("warmup", "warmup_steps", "warmup_iters"), "--warmup-fraction X: the part of the steps, such as 0.05"
    ),
    **dict.fromkeys(
        ("resume_from_checkpoint", "resume_from", "from_checkpoint", "checkpoint"), "--resume --out RUN"
    ),
    **dict.fromkeys(
        ("finetune", "fine_tune", "init", "init_from", "pretrained", "load", "from_pretrained", "base_model"),
        "a run begins with fresh weights, or goes on with --resume --out RUN",
    ),
}


def meant(word: str) -> str:
    """The setting that ``word`` is another name for, or the empty string."""
    plain = word.lower().replace("-", "_")
    return next((ours for ours, names in OURS.items() if plain in names), "")


def why_none(word: str) -> str:
    """What to type, or to know, where ``word`` is nothing that we have under any name; or the empty string."""
    return NONE.get(word.lower().replace("-", "_"), "")
