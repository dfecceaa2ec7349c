"""Single-process checks; tests/integration/test_engines.py has the engines on several ranks."""

import builtins
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dfer.config import ConfigProblem, from_plain
from dfer.distributed import World, process_group
from dfer.errors import CheckpointError, GpuMemoryError, NonFiniteLossError, UsageError
from dfer.inference import enough_gpu_memory, inference, set_tf32
from dfer.recognition import Progress
from dfer.run.folder import environment
from dfer.training.build import build_engine, check_precision
from dfer.training.config import AdamWConfig, EngineConfig, GroupConfig, OptimConfig, SgdConfig
from dfer.training.engine import Engine, LossScale
from tests.unit.training.stubs import TinyRecognizer, clips, share

GROUPS = {"trunk": GroupConfig(lr=0.05), "head": GroupConfig(lr=0.5)}
SGD = SgdConfig(groups=GROUPS)
NOW = Progress(epoch=0, step=0, fraction=0.0)


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    with process_group(World()):
        yield


def ddp(optim: OptimConfig = SGD, **config: Any) -> Engine:
    return build_engine(
        EngineConfig(name="ddp", **config),
        TinyRecognizer(wide=8),
        optim=optim,
        world=World(),
        global_batch=4,
        micro_batch=2,
        seed=1,
    )


def step(engine: Engine, seed: int = 0) -> None:
    batches = share(clips(4, seed=seed), rank=0, world_size=1, micro_batch=2)
    engine.step(batches, progress=NOW)


@pytest.mark.parametrize(
    ("plain", "text"),
    [
        ({"clip_norm": 0}, "clip_norm: expected a norm above 0, got 0.0. Usual: 1.0; null switches it off."),
        (
            {"clip_value": 0},
            "clip_value: expected a value above 0, got 0.0. CLIVP-FER's CNNs: 0.1; null switches it off.",
        ),
        (
            {"clip_value": 0.1, "clip_norm": 1},
            "clip_norm, clip_value: expected one of them, got 1.0 and 0.1. Set the other one to null.",
        ),
        (
            {"name": "ddp", "zero": 2},
            "zero: expected 0 with engine ddp, got 2. Set engine.zero=0 or engine.name=deepspeed",
        ),
        ({"zero": 4}, "zero: expected 0 or 1 or 2 or 3, got 4"),
        ({"precision": "int8"}, "precision: expected 'fp32' or 'bf16' or 'fp16', got 'int8'"),
    ],
)
def test_config_messages(plain: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        from_plain(EngineConfig, plain)
    assert text in str(caught.value)


@pytest.mark.parametrize("name", ["ddp", "deepspeed"])
def test_fp16_is_refused_on_a_cpu(name: Any) -> None:
    with pytest.raises(ConfigProblem) as caught:
        build_engine(
            EngineConfig(name=name, precision="fp16"),
            TinyRecognizer(wide=8),
            optim=SGD,
            world=World(),
            global_batch=4,
            micro_batch=2,
            seed=1,
        )
    assert str(caught.value) == (
        "engine.precision: expected fp32 or bf16 on a CPU, got fp16. "
        "Set engine.precision=bf16 (or fp32), or start on a machine with a GPU."
    )
    check_precision("fp16", torch.device("cuda", 0))


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigProblem) as caught:
        build_engine(
            EngineConfig(name="ddp"),
            TinyRecognizer(wide=8),
            optim=SGD,
            world=World(rank=0, size=4),
            global_batch=10,
            micro_batch=2,
            seed=1,
        )
    assert str(caught.value) == (
        "batch: expected a multiple of 4 ranks, got 10. Choose another batch or other numbers of processes."
    )


def test_a_missing_deepspeed_points_to_ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "deepspeed":
            raise ImportError("No module named 'deepspeed'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UsageError) as caught:
        build_engine(
            EngineConfig(), TinyRecognizer(wide=8), optim=SGD, world=World(), global_batch=4, micro_batch=2, seed=1
        )
    assert "engine.name=deepspeed: expected an importable deepspeed, got ImportError" in str(caught.value)
    assert "or set engine.name=ddp." in str(caught.value) and caught.value.exit_code == 2


def test_a_gpu_that_is_too_small_is_told_with_what_to_lower() -> None:
    """In torch's words as of CUDA; shown by the rank that has it, and no job is tried again for it."""
    text = """CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 3.1 GiB
    is free. Including non-PyTorch memory, this process has 70 GiB in use."""
    with pytest.raises(GpuMemoryError) as caught, enough_gpu_memory():
        raise torch.OutOfMemoryError(text)
    assert caught.value.exit_code == 10 and not isinstance(caught.value, UsageError)
    got = (
        "got CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 3.1 GiB"
    )
    assert got in str(caught.value) and "is free. Lower micro_batch (the step stays the same)" in str(caught.value)


def test_the_number_of_micro_batches_is_held() -> None:
    with pytest.raises(ValueError, match="expected 2 micro-batches a step, got 1"):
        ddp().step([clips(4)], progress=NOW)


def test_inference_equals_the_engine_and_leaves_no_gradient() -> None:
    engine = ddp(precision="bf16")
    batch = clips(3)
    twin = inference(TinyRecognizer(wide=8), precision="bf16", device=torch.device("cpu"))
    ours, theirs = engine.forward(batch).logits, twin(batch).logits
    assert torch.equal(ours, theirs) and ours.dtype == torch.float32 and not ours.requires_grad
    exact = inference(TinyRecognizer(wide=8), precision="fp32", device=torch.device("cpu"))(batch).logits
    assert 0 < (ours - exact).abs().max() < 0.05


def test_before_the_first_step_there_is_no_state_to_save_or_load() -> None:
    engine = ddp()
    assert engine.optimizer_state() == {}
    engine.load_optimizer_state({})


def test_another_optimizers_state_is_refused() -> None:
    source, target = ddp(), ddp(AdamWConfig(groups=GROUPS))
    step(source)
    with pytest.raises(CheckpointError) as caught:
        target.load_optimizer_state(source.optimizer_state())
    assert "checkpoint optimizer state: expected the names of this model, got missing head.bias/exp_avg" in str(
        caught.value
    )
    assert "unexpected head.bias/momentum_buffer" in str(caught.value)


def test_another_models_weights_are_refused() -> None:
    engine = ddp()
    weights = engine.weights()
    with pytest.raises(CheckpointError, match=r"checkpoint weights: .* missing head\.bias; unexpected extra"):
        engine.load_weights({"extra": torch.zeros(1), **{k: v for k, v in weights.items() if k != "head.bias"}})
    with pytest.raises(CheckpointError, match=r"the shapes of this model, got head\.bias \(4,\) for \(5,\)"):
        engine.load_weights({**weights, "head.bias": torch.zeros(4)})
    step(engine)
    state = {**engine.optimizer_state(), "head.bias/momentum_buffer": torch.zeros(4)}
    with pytest.raises(CheckpointError, match=r"got head\.bias/momentum_buffer \(4,\) for \(5,\)"):
        engine.load_optimizer_state(state)


def test_saved_tensors_are_copies() -> None:
    engine = ddp()
    step(engine)
    weights, state = engine.weights(), engine.optimizer_state()
    kept = {k: v.clone() for k, v in {**weights, **state}.items()}
    step(engine, seed=1)
    assert all(torch.equal(kept[k], v) for k, v in {**weights, **state}.items())
    assert any(not torch.equal(kept[k], v) for k, v in engine.weights().items())


def test_settings_that_changed_on_loading_are_noticed() -> None:
    engine = ddp()
    engine._optimizer.param_groups[1]["weight_decay"] = 0.7
    with pytest.raises(AssertionError, match="optimizer groups changed on loading"):
        engine.load_weights(engine.weights())


def test_loss_scale_halves_on_overflow_and_doubles_after_2000_good_steps() -> None:
    scale = LossScale(enabled=True)
    scale.update(overflowed=True)
    assert scale.value == 2.0**15
    for _ in range(1999):
        scale.update(overflowed=False)
    assert scale.value == 2.0**15
    scale.update(overflowed=False)
    assert scale.value == 2.0**16


def test_gradients_no_scale_can_save_stop_the_run() -> None:
    scale = LossScale(enabled=True)
    with pytest.raises(NonFiniteLossError) as caught:
        for _ in range(100):
            scale.update(overflowed=True)
    assert "expected finite fp16 gradients at some loss scale, got overflow down to scale" in str(caught.value)
    assert "Use engine.precision=bf16 or fp32, or lower the rates." in str(caught.value)


def test_without_fp16_the_scale_stays_one() -> None:
    scale = LossScale(enabled=False)
    for _ in range(5000):
        scale.update(overflowed=False)
    assert scale.value == 1.0


def test_one_key_sets_tf32_of_convolutions_and_matrix_products() -> None:
    for allowed in (True, False):
        ddp(tf32=allowed)
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
        assert environment(World())["tf32"] is allowed


def test_the_gpu_is_waited_for_before_state_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA DeepSpeed works on streams of its own."""
    engine, order = ddp(), []
    step(engine)
    read = engine._read_state
    monkeypatch.setattr(engine, "_read_state", lambda: order.append("read") or read())
    monkeypatch.setattr(torch.cuda, "synchronize", order.append)
    engine.optimizer_state()
    monkeypatch.setattr(World, "device", property(lambda _: torch.device("cuda", 0)))
    engine.optimizer_state()
    engine.weights()
    assert order == ["read", torch.device("cuda", 0), "read", torch.device("cuda", 0)]


@pytest.mark.gpu
def test_a_single_process_trains_on_its_gpu() -> None:
    """NCCL alone, with its device told; state is read after the streams have ended."""
    for zero in (0, 1, 2, 3):
        config = EngineConfig(zero=zero, clip_norm=1.0)
        engine = build_engine(
            config, TinyRecognizer(wide=8), optim=SGD, world=World(), global_batch=4, micro_batch=2, seed=1
        )
        batches = share(clips(4), rank=0, world_size=1, micro_batch=2)
        report = engine.step([b.to(World().device) for b in batches], progress=NOW)
        assert report.applied and all(value.isfinite().all() for value in engine.optimizer_state().values())
        engine.close()


@pytest.mark.gpu
def test_tf32_rounds_both_or_neither() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=draw) for _ in range(2))
    image, kernel = torch.randn(4, 64, 32, 32, generator=draw), torch.randn(64, 64, 3, 3, generator=draw)
    exact = a @ b, torch.nn.functional.conv2d(image, kernel)
    for allowed in (True, False):
        set_tf32(allowed)
        found = a.cuda() @ b.cuda(), torch.nn.functional.conv2d(image.cuda(), kernel.cuda())
        for ours, theirs in zip(found, exact):
            assert bool((ours.cpu() - theirs).abs().max() > 1e-3) is allowed
    set_tf32(False)


@pytest.mark.parametrize("micro_batch", [8, 9, 22])
def test_a_smaller_last_micro_batch_weighs_as_many_clips_as_it_has(micro_batch: int) -> None:
    """A rank's share of 23: the same gradients and terms as in one piece; an equal weight for each would differ."""
    found = []
    for micro in (23, micro_batch):
        engine = build_engine(
            EngineConfig(name="ddp"),
            TinyRecognizer(wide=8),
            optim=SGD,
            world=World(),
            global_batch=23,
            micro_batch=micro,
            seed=1,
        )
        cut = share(clips(23), rank=0, world_size=1, micro_batch=micro)
        assert len(cut) == engine.accumulation and [len(batch.labels) for batch in cut][-1] == (23 % micro or micro)
        report = engine.step(cut, progress=NOW)
        found.append((report, engine.weights()))
    (whole, expected), (parts, weights) = found
    assert parts.clips == 23 and parts.terms == pytest.approx(whole.terms, abs=1e-6)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    for name, value in weights.items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
