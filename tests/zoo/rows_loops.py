"""Loops of one's own with an online tuner: optimizers, schedulers and what stands beside them."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler as schedulers

from hyperopt_dl.online import DeltaBarDelta, ForwardTuner, HypergradientDescent
from tests.zoo.loops import (
    RATE,
    Loop,
    batch,
    check_delta,
    check_descent,
    groups_of,
    loss_of,
    network,
)
from tests.zoo.row import Kind

TUNED = Kind("ForwardTuner in a loop: optimizers")
SCHEDULED = Kind("ForwardTuner in a loop: schedulers")
BESIDE = Kind("ForwardTuner in a loop: what stands beside it")
DESCENDED = Kind("HypergradientDescent and DeltaBarDelta in a loop")
LIBRARIES = Kind("Lightning and transformers")


def _sgd(groups: Any) -> optim.Optimizer:
    return optim.SGD(groups, lr=0.05, momentum=0.5)


for name, build, options in (
    (
        "SGD, all options",
        lambda g: optim.SGD(g, 0.05, 0.5, 0.1, 0.02),
        ("lr@0", "lr@1", "momentum", "dampening", "weight_decay"),
    ),
    ("SGD, nesterov", lambda g: optim.SGD(g, 0.05, 0.5, nesterov=True), ("lr", "momentum")),
    ("SGD, maximize", lambda g: optim.SGD(g, 0.005, 0.5, maximize=True), ("lr", "momentum")),
    ("SGD, foreach", lambda g: optim.SGD(g, 0.05, 0.5, foreach=True), ("lr", "momentum")),
    (
        "Adam",
        lambda g: optim.Adam(g, 0.02, (0.8, 0.9), 1e-3, 0.1),
        ("lr", "betas[0]", "betas[1]", "eps", "weight_decay"),
    ),
    (
        "Adam, amsgrad and fused",
        lambda g: optim.Adam(g, 0.02, (0.8, 0.9), 1e-3, 0.1, True, fused=True),
        ("lr", "betas[0]"),
    ),
    ("AdamW", lambda g: optim.AdamW(g, 0.02, weight_decay=0.3), ("lr", "weight_decay")),
    (
        "RMSprop, centered",
        lambda g: optim.RMSprop(g, 0.01, 0.9, 1e-2, 0.1, 0.4, centered=True),
        ("lr", "alpha", "eps", "weight_decay", "momentum"),
    ),
    (
        "Adagrad",
        lambda g: optim.Adagrad(g, 0.05, 0.1, 0.1, eps=1e-3),
        ("lr", "lr_decay", "weight_decay", "eps"),
    ),
):
    TUNED.loop(name, lambda b=build, o=options: Loop(b).check(*o))

KNOWN: dict[str, Any] = {
    "match": "Online tuning knows the steps of torch.optim.*Use one of these",
    "says": "use SGD, Adam, AdamW, RMSprop or Adagrad",
}


def _tuner_of(build: Callable[[Any], optim.Optimizer]) -> None:
    ForwardTuner(build(groups_of(network())), {"lr": RATE})


def _matrices(kind: Any, **given: Any) -> Callable[[Any], optim.Optimizer]:
    """An optimizer of matrices alone."""

    def build(groups: Any) -> Any:
        params = [p for group in groups for p in group["params"] if p.ndim == 2]
        return kind(params, lr=0.02, **given)

    return build


for name, other in (
    ("Adadelta", lambda g: optim.Adadelta(g, lr=0.5)),
    ("Adafactor", lambda g: optim.Adafactor(g, lr=0.02)),
    ("Adamax", lambda g: optim.Adamax(g, lr=0.02)),
    ("ASGD", lambda g: optim.ASGD(g, lr=0.02)),
    ("LBFGS", lambda g: optim.LBFGS([p for group in g for p in group["params"]], lr=0.5)),
    ("Muon", _matrices(optim.Muon)),
    ("NAdam", lambda g: optim.NAdam(g, lr=0.02)),
    ("RAdam", lambda g: optim.RAdam(g, lr=0.02)),
    ("Rprop", lambda g: optim.Rprop(g, lr=0.02)),
    ("SparseAdam", lambda g: optim.SparseAdam(g, lr=0.02)),
):
    TUNED.refused_loop(name, lambda b=other: _tuner_of(b), **KNOWN)


class Lookahead(optim.SGD):
    """A subclass, which may step otherwise."""


TUNED.refused_loop("a subclass of SGD", lambda: _tuner_of(lambda g: Lookahead(g, lr=0.1)), **KNOWN)

for name, make in (
    ("LambdaLR", lambda o: schedulers.LambdaLR(o, lambda t: 0.9**t)),
    ("MultiplicativeLR", lambda o: schedulers.MultiplicativeLR(o, lambda t: 0.9)),
    ("StepLR", lambda o: schedulers.StepLR(o, 3, 0.5)),
    ("MultiStepLR", lambda o: schedulers.MultiStepLR(o, [2, 5], 0.5)),
    ("ConstantLR", lambda o: schedulers.ConstantLR(o, 0.5, 4)),
    ("LinearLR", lambda o: schedulers.LinearLR(o, 0.3, 1.0, 6)),
    ("ExponentialLR", lambda o: schedulers.ExponentialLR(o, 0.9)),
    ("PolynomialLR", lambda o: schedulers.PolynomialLR(o, 12, 2.0)),
    ("CosineAnnealingLR", lambda o: schedulers.CosineAnnealingLR(o, 10, 0.001)),
    ("CosineAnnealingWarmRestarts", lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4)),
    ("CyclicLR", lambda o: schedulers.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False)),
    (
        "CyclicLR with momentum",
        lambda o: schedulers.CyclicLR(o, 0.01, 0.1, 3, base_momentum=0.3, max_momentum=0.6),
    ),
    ("OneCycleLR", lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=12)),
    (
        "SequentialLR, a warm-up before a cosine",
        lambda o: schedulers.SequentialLR(
            o, [schedulers.LinearLR(o, 0.2, 1.0, 3), schedulers.CosineAnnealingLR(o, 8)], [3]
        ),
    ),
    (
        "ChainedScheduler",
        lambda o: schedulers.ChainedScheduler(
            [schedulers.ExponentialLR(o, 0.9), schedulers.LinearLR(o, 0.4, 1.0, 4)]
        ),
    ),
    ("SWALR", lambda o: optim.swa_utils.SWALR(o, swa_lr=0.02, anneal_epochs=4)),
):
    SCHEDULED.loop(name, lambda m=make: Loop(_sgd, scheduler=m).check("lr@0", "lr@1"))
SCHEDULED.refused_loop(
    "ReduceLROnPlateau",
    lambda: Loop(
        _sgd, scheduler=lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=1)
    ).check("lr"),
    match="ReduceLROnPlateau",
    says="use a scheduler that gives its groups an initial_lr, or leave lr out of tune",
)
SCHEDULED.loop(
    "a cosine beside Adam",
    lambda: Loop(
        lambda g: optim.Adam(g, lr=0.05), scheduler=lambda o: schedulers.CosineAnnealingLR(o, 10)
    ).check("lr", "betas[0]"),
)

# --- what stands beside a tuner ---


def _in_loss() -> None:
    """A coefficient of a second term."""
    rho = torch.tensor(0.1, dtype=torch.double, requires_grad=True)

    def loss(model: Any, t: int, rho: Any = rho) -> Any:
        return loss_of(model, t) + rho * model(batch(t)[0]).square().mean()

    loop = Loop(_sgd, loss=loss)
    model = network()
    optimizer = _sgd(groups_of(model))
    tuner = ForwardTuner(optimizer, {"lr": RATE, "rho": RATE}, hyper_lr=0.0, in_loss={"rho": rho})
    for t in range(loop.steps):
        optimizer.zero_grad()
        tuner.backward(loss(model, t))
        optimizer.step()
    tuner.step(loss_of(model, -1))
    ends = [loop.plain({}, rho=0.1 * math.exp(sign * 1e-5))[0] for sign in (1, -1)]
    right, got = (ends[0] - ends[1]) / 2e-5, tuner.history[-1].gradient["rho"]
    assert abs(got - right) <= 1e-6 + 1e-5 * abs(right), f"got {got}, right {right}"


def _averaged() -> None:
    """An AveragedModel that follows the weights changes nothing of the tuner's."""
    made: list[Any] = []

    def after(model: nn.Module) -> None:
        if not made or made[-1][0] is not model:
            average = optim.swa_utils.get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
            made.append((model, optim.swa_utils.AveragedModel(model, multi_avg_fn=average)))
        made[-1][1].update_parameters(model)

    Loop(_sgd, after=after).check("lr", "momentum")


def _under_autocast() -> None:
    """bfloat16 in the forward pass: the tangents are those of a loop by autograd."""
    model, optimizer = network().float(), None
    optimizer = _sgd(groups_of(model))
    tuner = ForwardTuner(optimizer, {"lr": RATE}, hyper_lr=0.0)

    def loss(model: Any, t: int) -> Any:
        x, y = (part.float() for part in batch(t))
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        return 3 * (out.float() - y).square().mean()

    for t in range(6):
        optimizer.zero_grad()
        tuner.backward(loss(model, t))
        optimizer.step()
    tuner.step(loss(model, -1))
    right = Loop(_sgd, steps=6).quotient("lr")[0]
    got = tuner.history[-1].gradient["lr"]
    assert abs(got - right) <= 0.05 * abs(right), f"got {got}, right {right}"


def _clipped_by_torch() -> None:
    """Clipping behind the tuner's back."""
    model = network()
    optimizer = _sgd(groups_of(model))
    tuner = ForwardTuner(optimizer, {"lr": RATE})
    for t in range(2):
        optimizer.zero_grad()
        tuner.backward(loss_of(model, t))
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def _scaled_gradients() -> None:
    """A GradScaler."""
    model = network()
    optimizer = _sgd(groups_of(model))
    tuner = ForwardTuner(optimizer, {"lr": RATE})
    scaler = torch.amp.GradScaler("cpu")
    for t in range(2):
        optimizer.zero_grad()
        tuner.backward(scaler.scale(loss_of(model, t)))
        scaler.step(optimizer)
        scaler.update()


def _two_processes() -> None:
    """A process group of two, as far as this process can tell."""
    import torch.distributed as dist  # noqa: PLC0415
    from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: PLC0415

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        _tuner_of(_sgd)
    finally:
        dist.destroy_process_group()


def _forgotten_parameters() -> None:
    """A parameter that is trained, which the optimizer does not know."""
    model = network()
    optimizer = optim.SGD(model[0].parameters(), lr=0.1)
    tuner = ForwardTuner(optimizer, {"lr": RATE})
    tuner.backward(loss_of(model, 0))


def _adversaries() -> None:
    """A GAN: two networks and two optimizers, one of which is tuned.

    The loss of the generator runs through the discriminator, whose weights are trained too.
    """
    maker, judge = nn.Linear(2, 3).double(), nn.Linear(3, 1).double()
    first = optim.SGD(maker.parameters(), lr=0.1)
    second = optim.SGD(judge.parameters(), lr=0.1)
    tuner = ForwardTuner(first, {"lr": RATE})
    for t in range(2):
        x, z = batch(t)[0], batch(t)[1]
        second.zero_grad()
        real, fake = judge(x), judge(maker(z).detach())
        (nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()).backward()  # type: ignore[no-untyped-call]
        second.step()
        first.zero_grad()
        tuner.backward(nn.functional.softplus(-judge(maker(z))).mean())
        first.step()


def _frozen_adversary() -> None:
    """The same with the discriminator frozen while the generator learns, and fixed: exact."""

    def model() -> nn.Sequential:
        return network()

    judge = nn.Linear(2, 1).double().requires_grad_(False)
    with torch.no_grad():
        judge.weight.copy_(torch.tensor([[0.3, -0.7]]))

    def loss(model: Any, t: int) -> Any:
        return nn.functional.softplus(-judge(model(batch(t)[0]))).mean() + loss_of(model, t)

    Loop(_sgd, loss=loss, model=model).check("lr", "momentum")


BESIDE.loop("a number in the loss", _in_loss)
BESIDE.loop(
    "several calls of backward a step", lambda: Loop(_sgd, accumulate=3).check("lr", "momentum")
)
BESIDE.loop("tuner.clip_grad_norm_", lambda: Loop(_sgd, clip=0.4).check("lr", "momentum"))
BESIDE.loop("an AveragedModel (EMA)", _averaged)
BESIDE.loop("autocast to bfloat16", _under_autocast)
BESIDE.loop("a frozen network in the loss", _frozen_adversary)
BESIDE.refused_loop(
    "torch's clip_grad_norm_ between backward and step",
    _clipped_by_torch,
    match="tuner.clip_grad_norm_|clip_grad_norm_",
    says="clip with tuner.clip_grad_norm_, which takes the tangents along",
)
BESIDE.refused_loop(
    "a GradScaler",
    _scaled_gradients,
    match="GradScaler",
    says="leave it out: bfloat16 needs none",
)
BESIDE.refused_loop(
    "two processes",
    _two_processes,
    match="one process.*HypergradientDescent",
    says="use HypergradientDescent: tangents are not averaged over processes",
)
BESIDE.refused_loop(
    "a trained parameter that the optimizer does not have",
    _forgotten_parameters,
    match="Give them to the optimizer too",
    says="give them to the optimizer too, or freeze them",
)
BESIDE.refused_loop(
    "a GAN, whose two networks learn in turn",
    _adversaries,
    match="Give them to the optimizer too|requires_grad_",
    says="freeze the other network while this one learns",
)


def _every(kind: str) -> Callable[[Any], optim.Optimizer]:
    """An optimizer that is known, by its name."""
    return lambda groups: getattr(optim, kind)(groups, lr=0.02)


for name, build, decay in (
    ("SGD", lambda g: optim.SGD(g, lr=0.05), 0.0),
    ("SGD with momentum and decay", lambda g: optim.SGD(g, 0.05, 0.5, weight_decay=0.1), 0.1),
    ("SGD, nesterov", lambda g: optim.SGD(g, 0.05, 0.5, nesterov=True), 0.0),
    ("Adam", lambda g: optim.Adam(g, 0.02, (0.8, 0.9)), 0.0),
    ("Adam, amsgrad", lambda g: optim.Adam(g, 0.02, amsgrad=True), 0.0),
    ("AdamW", lambda g: optim.AdamW(g, 0.02, weight_decay=0.3), 0.0),
):
    DESCENDED.loop(f"HypergradientDescent, {name}", lambda b=build, d=decay: check_descent(b, d))
for kind in ("Adadelta", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "ASGD", "Rprop"):
    DESCENDED.refused_loop(
        f"HypergradientDescent, {kind}",
        lambda k=kind: HypergradientDescent(_every(k)(groups_of(network()))),
        match="SGD.*Adam",
        says="use SGD, Adam or AdamW",
    )
    DESCENDED.loop(f"DeltaBarDelta, {kind}", lambda k=kind: check_delta(_every(k)))
for kind in ("SGD", "Adam", "AdamW", "Adafactor"):
    DESCENDED.loop(f"DeltaBarDelta, {kind}", lambda k=kind: check_delta(_every(k)))
DESCENDED.refused_loop(
    "DeltaBarDelta, a negative kappa",
    lambda: DeltaBarDelta(_sgd(groups_of(network())), kappa=-1.0),
    match="kappa >= 0",
    says="kappa must not be negative",
)


# --- Lightning and transformers ---


def _lightning() -> None:
    """The callback of docs/online.md in a Trainer of Lightning, against the loop."""
    lightning: Any = importlib.import_module("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc]
        tuner: ForwardTuner | None = None

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = True
            self.net = network()

        def training_step(self, given: Any, index: int) -> Any:
            return loss_of(self.net, index)

        def backward(self, loss: Tensor) -> None:
            assert self.tuner is not None
            self.tuner.backward(loss)

        def configure_optimizers(self) -> optim.Optimizer:
            return _sgd(groups_of(self.net))

    class Tune(lightning.Callback):  # type: ignore[misc]
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            module.tuner = ForwardTuner(trainer.optimizers[0], {"lr": RATE}, hyper_lr=0.0)

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            if module.tuner.steps == 9:
                module.tuner.step(loss_of(module.net, -1))

    module = Module()
    trainer = lightning.Trainer(
        max_steps=9,
        callbacks=[Tune()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(9, 1)))
    )
    assert module.tuner is not None
    right, got = Loop(_sgd).quotient("lr"), module.tuner.history[-1].gradient["lr"]
    assert min(abs(got - each) for each in right) <= 1e-5, f"got {got}, right {right}"


def _hugging_face() -> None:
    """The Trainer of docs/online.md, against a loop with the tuner."""
    transformers: Any = importlib.import_module("transformers")
    import tempfile  # noqa: PLC0415

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, t: Tensor, labels: Any = None) -> dict[str, Tensor]:
            return {"loss": loss_of(self.net, int(t[0]))}

    class Tuned(transformers.Trainer):  # type: ignore[misc]
        tuner: ForwardTuner

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            model.train()
            loss: Tensor = self.compute_loss(model, self._prepare_inputs(inputs))
            self.tuner.backward(loss / self.args.gradient_accumulation_steps)
            return loss.detach()

    model = Model()
    optimizer = _sgd(groups_of(model.net))
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=9,
            per_device_train_batch_size=1,
            max_grad_norm=0,
            lr_scheduler_type="constant",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Tuned(
            model,
            arguments,
            train_dataset=[{"t": torch.tensor(t)} for t in range(9)],
            optimizers=(optimizer, None),
        )
        trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(range(9))
        trainer.tuner = ForwardTuner(optimizer, {"lr": RATE}, hyper_lr=0.0)
        trainer.train()
        trainer.tuner.step(loss_of(model.net, -1))
    right, got = Loop(_sgd).quotient("lr"), trainer.tuner.history[-1].gradient["lr"]
    assert min(abs(got - each) for each in right) <= 1e-5, f"got {got}, right {right}"


LIBRARIES.loop("a Trainer of Lightning", _lightning, needs="lightning", fast=False, quiet=(".*",))
LIBRARIES.loop(
    "a Trainer of transformers", _hugging_face, needs="transformers", fast=False, quiet=(".*",)
)
ROWS = [*TUNED.rows, *SCHEDULED.rows, *BESIDE.rows, *DESCENDED.rows, *LIBRARIES.rows]
