"""DeepSpeed's ZeRO behind the checkpoints of every other strategy: one file, whole weights, AdamW's state by parameter.

    L.Trainer(strategy=Zero.at(stage=2, precision="bf16-mixed", on_cpu=False, …), plugins=[WholeBatch("bf16-mixed")])

Ranks keep parts of the optimizer's state (and, by stage, of gradients and weights); a save puts them together parameter
by parameter, a resume cuts them anew. So a run goes on under another strategy and on another number of ranks, as DDP's
do. Weights stay fp32 and the forward pass is autocast, as under DDP: what a run computes does not depend on who sums it
up. ZeRO: Rajbhandari et al. 2020 (arXiv 1910.02054), through Lightning. The form of the checkpoint is our choice over
DeepSpeed's folders, which only as many ranks can read as wrote them, or a conversion by hand.
"""

import argparse
import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
SCALER = "MixedPrecision"
"""Under this key, Lightning's own, a checkpoint holds the state of torch's loss scaler."""


class Zero(DeepSpeedStrategy):
    """One of DeepSpeed's stages, with the checkpoints of this project."""

    _parameters: tuple[list[nn.Parameter], ...] = ()  # of each of the optimizer's groups, whole

    @classmethod
    def at(cls, stage: int, precision: str, *, offload: bool = False, on_cpu: bool = False, **settings: Any) -> "Zero":
        """The strategy for GPUs or, to test it, for CPUs. offload: the optimizer's parts lie, and step, on the CPU."""
        if on_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported
        strategy = (CPUZero if on_cpu else cls)(
            stage=stage,
            offload_optimizer=offload,
            logging_batch_size_per_gpu=1,  # for its log; "auto" asks the loader for a batch_size it does not have
            **settings,
        )
        config: Any = strategy.config
        config["zero_force_ds_cpu_optimizer"] = False  # torch's fused AdamW steps on a CPU, too, and needs no compiler
        if precision in HALF:
            half = str(HALF[precision]).removeprefix("torch.")
            # [] : gradients are summed up in fp32, as under DDP
            config["torch_autocast"] = {"enabled": True, "dtype": half, "lower_precision_safe_modules": []}
        return strategy

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        """As the parent; its `root_device.index` is None on a CPU. Scale the loss where the computation is in fp16."""
        import deepspeed  # an extra, and slow to import
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

        self._parameters = tuple(list(group["params"]) for group in optimizer.param_groups)
        initialize: Any = deepspeed.initialize  # its types say less than it takes and gives
        engine, zero, _, _ = initialize(
            args=argparse.Namespace(device_rank=self.local_rank),
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        if zero.torch_autocast_gradscaler is not None:
            # That one looks for infinities in a rank's own part and so skips a step on some ranks alone. This one, of
            # DeepSpeed's fp16 mode, asks all of them; its numbers are torch's.
            zero.torch_autocast_gradscaler = None
            zero.loss_scaler = DynamicLossScaler(2.0**16, 2000, 1.0, 1, False, raise_error_at_min_scale=False)
            zero.dynamic_loss_scale = zero.check_grad_overflow = True
        return engine, zero

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        """A validation after the training needs no engine."""
        self.model = model.to(self.root_device)

    # --- a checkpoint, whole

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """On rank 0, copies on the CPU: a view would bring the whole buffer that all weights lie in."""
        module: Any = self.lightning_module
        state: dict[str, Tensor] = module.state_dict() if self.is_global_zero else {}
        return {key: value.to("cpu", copy=True) for key, value in state.items()}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """What torch's AdamW over whole parameters would give, on rank 0; all ranks must call it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        parts = optimizer.optimizer  # torch's AdamW over this rank's parts
        step = next((state["step"] for state in parts.state.values()), None)  # all step together
        if step is not None:
            self._link()
        groups, states = [], {}
        for group, parameters in zip(parts.param_groups, self._parameters, strict=True):
            numbers = range(len(states), len(states) + len(parameters))
            groups.append({**group, "params": list(numbers)})
            for number, parameter in zip(numbers, parameters):
                states[number] = {}
                if step is not None:
                    moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}  # all ranks do
                    kept = {"step": step, **moments} if self.is_global_zero else {}
                    states[number] = {key: value.to("cpu", copy=True) for key, value in kept.items()}
        return {"state": states if step is not None else {}, "param_groups": groups}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """One file, by rank 0, with the state of the loss scaler as torch has it."""
        scaler = self.optimizers[0].loss_scaler  # type: ignore[union-attr]
        if scaler.dynamic:
            stable = scaler.cur_iter - scaler.last_overflow_iter - 1
            checkpoint[SCALER] = {
                "scale": scaler.cur_scale, "growth_factor": scaler.scale_factor, "backoff_factor": 0.5,
                "growth_interval": scaler.scale_window, "_growth_tracker": stable % scaler.scale_window,
            }  # fmt: skip
        super(DeepSpeedStrategy, self).save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """One file, whatever strategy wrote it."""
        return super(DeepSpeedStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning call load_optimizer_state_dict."""
        return True

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Into the module, and into this rank's part of what the optimizer steps."""
        from deepspeed.utils import safe_set_full_fp32_param

        super(DeepSpeedStrategy, self).load_model_state_dict(checkpoint, strict)
        for parameter in (p for group in self._parameters for p in group):
            safe_set_full_fp32_param(parameter, parameter.detach())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Cut AdamW's state of whole parameters into the ranks' parts.

        A part counts one step for all that it holds. A parameter that had taken fewer (distill_lightening's join one
        by one) gets the moments that, with the others' correction of their bias, come to what its own came to.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        zero: Any = self.optimizers[0]
        parts, stored = zero.optimizer, checkpoint["optimizer_states"][0]
        for group, was in zip(parts.param_groups, stored["param_groups"], strict=True):
            group.update({key: value for key, value in was.items() if key != "params"})
        scaler, kept = zero.loss_scaler, checkpoint.get(SCALER)
        if scaler.dynamic and kept:
            scaler.cur_scale, scaler.cur_iter = float(kept["scale"]), int(kept["_growth_tracker"])
        if not stored["state"]:
            return
        most = max(float(state["step"]) for state in stored["state"].values())
        for part in zero.single_partition_of_fp32_groups:
            step = torch.tensor(most, device=part.device)
            parts.state[part] = {"step": step, **{key: torch.zeros_like(part) for key in MOMENTS}}
        self._link()
        for group, was, parameters in zip(parts.param_groups, stored["param_groups"], self._parameters, strict=True):
            for number, parameter in zip(was["params"], parameters, strict=True):
                state = stored["state"].get(number, {})
                for key, beta in zip(MOMENTS, group["betas"]):
                    if key in state:
                        share = (1 - beta**most) / (1 - beta ** float(state["step"]))
                        safe_set_full_optimizer_state(parameter, state[key] * share, key)

    def _link(self) -> None:
        """Let each weight find its part of the state: DeepSpeed does so when only the first group has made a step."""
        zero: Any = self.optimizers[0]
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


class CPUZero(Zero):
    """DeepSpeed over gloo without a GPU, for tests: steps over Lightning's assumption that there are only GPUs."""

    strategy_name = "deepspeed_cpu"

    def setup_environment(self) -> None:
        """Skip the parent's refusal of any accelerator but CUDA."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """Skip the parent's check of device indices: CPU devices have none. And say that no extension compiles here,
        else DeepSpeed tries them all, and makes one that gloo does not need."""
        import deepspeed

        ops: Any = deepspeed.ops
        ops.__compatible_ops__ = {}
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()


class WholeBatch(DeepSpeedPrecision):
    """Autocast around fp32 weights, and the batch as it is.

    Lightning's own would cast the batch, which cannot rebuild a Batch with its frozen Frames, and the whole module.
    """

    def __init__(self, precision: str) -> None:
        super().__init__("32-true")
        self._half = HALF.get(precision)

    def convert_input(self, data: Any) -> Any:
        """Leave the batch as it is."""
        return data

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning has divided the loss by the batches that are accumulated; DeepSpeed would do so again."""
        super().backward(tensor, model, optimizer, *args, scale_wrt_gas=False, **kwargs)

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        """Autocast, where the precision is mixed; within DeepSpeed's engine its own setting says the same."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.autocast(device, dtype=self._half, enabled=self._half is not None):
            yield
