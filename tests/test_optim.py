"""Optimisers against references written out, against those of torch and others, and against themselves resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import torchrun
from torch import Tensor, nn
from torch.optim import Optimizer

from corpora.errors import RecipeError
from corpora.token_ids import TokenIds
from distill.averaging import MovingAverage
from distill.checkpoint import Checkpoints, Progress
from distill.config import MuonConfig, TrainConfig
from distill.lamb import Lamb, trust_ratios
from distill.learning_rate import set_learning_rate
from distill.objective import Objective
from distill.optim import make_optimizer, without_decay
from students.buildable import Buildable
from students.registry import ARCHITECTURES, build_model

VOCAB_SIZE = 180  # types; ShareBERT of width 16 needs 171
OPTIMIZERS = ("adamw", "muon", "lamb")


def a_model(architecture: str = "llama", **changes: Any) -> Buildable:
    config = tiny.model_config(architecture, **changes)
    return build_model(config, vocab_size=VOCAB_SIZE, token_ids=TokenIds(), seed=3)


def config_for(optimizer: str, **changes: Any) -> TrainConfig:
    return tiny.train_config(**{"optimizer": optimizer, "lr": 1e-2, "eps": 1e-6} | changes)


def give_gradients(model: nn.Module, step: int) -> None:
    """Gradients of a step: noise, the same for every model of these shapes."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        give_gradients(model, step)
        set_learning_rate(optimizer, 1e-2 / (step + 1))
        optimizer.step()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Parameters without those that are frozen: ShareBERT's pooler, which no language model's loss reaches."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def in_weight(name: str) -> Callable[[str], str]:
    """For messages."""
    return lambda text: f"{name}: {text}"


def weights_of(optimizer: Optimizer, **facts: Any) -> set[nn.Parameter]:
    """Those of the groups of which all this is true."""
    return {
        weight
        for group in optimizer.param_groups
        if all(group.get(key) == value for key, value in facts.items())
        for weight in group["params"]
    }


# what decays


def test_matrices_decay_and_vectors_do_not() -> None:
    for architecture in ARCHITECTURES:
        model = a_model(architecture)
        matrices, vectors = make_optimizer(model, tiny.train_config()).param_groups
        assert matrices["weight_decay"] == 0.1 and all(parameter.ndim >= 2 for parameter in matrices["params"])
        assert vectors["weight_decay"] == 0.0 and all(parameter.ndim == 1 for parameter in vectors["params"])
        ours = [parameter for group in (matrices, vectors) for parameter in group["params"]]
        assert len(ours) == len(set(ours)) and set(ours) == set(trained(model)), "tied weights count once"
        # state is stored by this order
        assert matrices["params"] == [parameter for parameter in trained(model) if parameter.ndim >= 2]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_tables_can_be_kept_from_decay(architecture: str, optimizer: str) -> None:
    model = a_model(architecture)
    network = model.network
    tables = {network.get_input_embeddings().weight, network.get_output_embeddings().weight}  # type: ignore[union-attr]
    assert len(tables) == (2 if architecture in ("llama", "share_bert") else 1)
    made = make_optimizer(Objective(model), config_for(optimizer, no_decay=["embeddings"]))
    assert weights_of(made, weight_decay=0.0) == tables
    assert weights_of(made, weight_decay=0.1) == set(trained(model)) - tables


def test_patterns_keep_weights_from_decay_by_name() -> None:
    """As ELC-BERT was trained: by parts of names, which are those of the saved model."""
    model = a_model("elc_bert")
    patterns = ["*bias", "*layer_norm*", "*embedding*", "*prev_layer_weights"]
    found = without_decay(Objective(model), patterns)
    words = ("bias", "layer_norm", "embedding", "prev_layer_weights")
    named = {name: parameter for name, parameter in model.network.named_parameters()}
    assert found == {parameter for name, parameter in named.items() if any(word in name for word in words)}
    assert {named["elc_bert.embedding.relative_embedding"], named["elc_bert.layers.1.mix.prev_layer_weights"]} < found
    assert without_decay(model, patterns) == found, "a model's names are those of its objective"
    # of a tied weight, either name will do
    assert without_decay(model, ["decoder.weight"]) == {model.network.get_input_embeddings().weight}


def test_an_objective_has_weights_of_its_own() -> None:
    objective = Objective(a_model(), nn.ModuleDict({"term1_member0": nn.Linear(16, 8, bias=False)}))
    own = {objective.projections["term1_member0"].weight}
    assert without_decay(objective, ["projections.*"]) == own
    assert own < weights_of(make_optimizer(objective, config_for("adamw")), weight_decay=0.1)


def test_nothing_is_kept_from_decay_where_nothing_is_named() -> None:
    model = a_model()
    [group] = make_optimizer(model, config_for("lamb", no_decay=[])).param_groups
    assert group["weight_decay"] == 0.1 and set(group["params"]) == set(model.parameters())


def test_frozen_weights_are_not_trained() -> None:
    model = a_model().requires_grad_(False)
    adapted = model.network.get_submodule("model.layers.0.mlp").requires_grad_(True)
    for name in OPTIMIZERS:  # matrices alone: Muon leaves AdamW nothing
        made = make_optimizer(model, config_for(name, no_decay=["vectors", "*layernorm*"]))
        assert weights_of(made) == set(adapted.parameters())


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(RecipeError) as refused:
        make_optimizer(a_model(), config_for("adamw", no_decay=["vectors", "*layer_norm*"]))
    line = str(refused.value)
    assert line.startswith("train.no_decay: '*layer_norm*' matches no weights, expected vectors, embeddings or ")
    assert "model.layers.0.input_layernorm.weight" in line and "\n" not in line


# LAMB


def lamb_written_out(steps: range, parameter: Tensor, decay: float, gradients: list[Tensor]) -> Tensor:
    """One step after the other, in fp64, by the published code's definition."""
    value, mean, square = parameter.double(), torch.zeros(()), torch.zeros(())
    for step in steps:
        gradient = gradients[step].double()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.98 * square + 0.02 * gradient**2
        corrected = mean / (1 - 0.9 ** (step + 1))
        update = corrected / ((square / (1 - 0.98 ** (step + 1))).sqrt() + 1e-6)
        ratio = torch.tensor(1.0)
        if decay > 0:
            update = update + decay * value
            if value.norm() > 0 and update.norm() > 0:
                ratio = value.norm() / update.norm()
        value = value - 1e-2 / (step + 1) * ratio * update
    return value


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lamb_is_its_definition(architecture: str) -> None:
    model = a_model(architecture)
    before, gradients = values(model), {name: [] for name in values(model)}
    for step in range(5):
        give_gradients(model, step)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradients[name].append(parameter.grad)
    train(model, make_optimizer(model, config_for("lamb", betas=(0.9, 0.98), weight_decay=0.4)), range(5))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, found in values(model).items():
        if name in frozen:
            assert torch.equal(found, before[name])
            continue
        decay = 0.4 if found.ndim >= 2 else 0.0
        expected = lamb_written_out(range(5), before[name], decay, gradients[name])
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
        if decay and before[name].any():
            undecayed = lamb_written_out(range(5), before[name], 0.0, gradients[name])
            assert (found - undecayed).abs().max() > 1e-3, f"{name}: the trust ratio shows"


def test_lamb_is_that_of_pytorch_optimizer() -> None:
    """It corrects no moments, so its decay, eps and rate are set in every step to what makes the two one.

    m / c1 / (sqrt(v / c2) + eps) + decay p is sqrt(c2) / c1 times m / (sqrt(v) + sqrt(c2) eps) + c1 / sqrt(c2) decay p,
    and the trust ratio takes no notice of a factor.
    """
    other = pytest.importorskip("pytorch_optimizer")
    ours, theirs = a_model(), a_model()
    beta1, beta2, decay, eps = 0.9, 0.98, 0.1, 1e-6
    optimizer = make_optimizer(ours, config_for("lamb", betas=(beta1, beta2), weight_decay=decay, eps=eps))
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "adam": False},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "adam": True},  # a trust ratio of 1
    ]
    # else it divides whole steps by correction1, those that the trust ratio has just scaled
    reference = other.Lamb(groups, betas=(beta1, beta2), weight_decouple=False, adam_debias=True)
    reference.clamp = math.inf
    for step in range(6):
        correction1, root2 = 1 - beta1 ** (step + 1), (1 - beta2 ** (step + 1)) ** 0.5
        rate = 1e-2 / (step + 1)
        for group in reference.param_groups:
            group["eps"] = eps * root2
            group["weight_decay"] = 0.0 if group["adam"] else decay * correction1 / root2
            group["lr"] = rate * root2 / correction1 if group["adam"] else rate
        give_gradients(theirs, step)
        reference.step()
    train(ours, optimizer, range(6))
    for (name, found), expected in zip(values(ours).items(), values(theirs).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6, msg=in_weight(name))


def test_lamb_without_decay_is_adam() -> None:
    """Whatever the size of the weights, and of all gradients together."""
    found, expected = (a_model() for _ in range(2))
    train(found, make_optimizer(found, config_for("lamb", weight_decay=0.0)), range(4))
    train(expected, make_optimizer(expected, config_for("adamw", weight_decay=0.0)), range(4))
    for name, value in values(found).items():
        torch.testing.assert_close(
            value, values(expected)[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_trust_ratio_is_one_where_a_norm_is_nothing_and_is_not_clipped() -> None:
    tensors = [torch.zeros(3, 2), torch.ones(3, 2), torch.full((2, 2), 500.0), torch.ones(2, 2)]
    updates = [torch.ones(3, 2), torch.zeros(3, 2), torch.full((2, 2), 0.5), torch.full((2, 2), 2e4)]
    assert [float(ratio) for ratio in trust_ratios(tensors, updates)] == pytest.approx([1, 1, 1000, 5e-5])


def test_lamb_counts_the_steps_of_each_weight() -> None:
    """One that no term of a row asked has no gradient, and its moments are not corrected for that step."""
    weights = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizer = Lamb(weights, lr=0.1, betas=(0.9, 0.98), weight_decay=0.0)
    weights[0].grad = torch.ones(2, 2)
    optimizer.step()
    assert weights[1] not in optimizer.state and weights[1].eq(1.0).all()
    weights[1].grad = torch.ones(2, 2)
    optimizer.step()
    # a constant gradient, rightly corrected, makes every step of Adam as long as the rate
    assert weights[1].flatten().tolist() == pytest.approx([0.9] * 4, abs=1e-5)
    assert weights[0].flatten().tolist() == pytest.approx([0.8] * 4, abs=1e-5)


# Muon


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_muon_has_the_matrices_between_embedding_and_head(architecture: str) -> None:
    model = a_model(architecture)
    made = make_optimizer(Objective(model), config_for("muon", muon=MuonConfig(lr=0.04)))
    # of positions and segments too, which are looked up as words are
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    tables.add(model.network.get_output_embeddings().weight)  # type: ignore[union-attr]
    matrices = {parameter for parameter in model.parameters() if parameter.ndim == 2} - tables
    others = set(trained(model)) - matrices
    assert weights_of(made, momentum=0.95) == matrices and matrices
    assert weights_of(made, fused=True) == others
    assert weights_of(made, weight_decay=0.1) == {parameter for parameter in trained(model) if parameter.ndim >= 2}
    set_learning_rate(made, 5e-3)  # half of the peak
    assert weights_of(made, lr=0.02) == matrices and weights_of(made, lr=5e-3) == others


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_muon_and_adamw_joined_are_the_two_apart(scale: str) -> None:
    muon = MuonConfig(lr=0.04, momentum=0.9, nesterov=scale == "original", ns_steps=4, scale=scale)  # type: ignore[arg-type]
    joined, apart = a_model(), a_model()
    train(joined, make_optimizer(joined, config_for("muon", muon=muon)), range(3))

    named = dict(apart.network.named_parameters())
    tables = [named["model.embed_tokens.weight"], named["lm_head.weight"]]
    vectors = [weight for name, weight in named.items() if "norm" in name]
    matrices = [weight for name, weight in named.items() if "proj" in name]
    assert len(tables) + len(vectors) + len(matrices) == len(named)
    by_hand = [
        torch.optim.Muon(
            matrices,
            lr=0.04,
            weight_decay=0.1,
            momentum=0.9,
            nesterov=scale == "original",
            ns_steps=4,
            adjust_lr_fn=scale,
        ),
        torch.optim.AdamW(
            [{"params": tables, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=1e-2,
            betas=(0.9, 0.95),
            eps=1e-6,
            fused=True,
        ),
    ]
    peaks = [0.04, 1e-2]
    for step in range(3):
        give_gradients(apart, step)
        for optimizer, peak in zip(by_hand, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * (1e-2 / (step + 1)) / 1e-2
            optimizer.step()
    for name, value in values(joined).items():
        torch.testing.assert_close(
            value, values(apart)[name], rtol=1e-6, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


# going on


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_state_is_tensors_counted_from_nothing(name: str) -> None:
    model = a_model("elc_bert")
    optimizer = make_optimizer(model, config_for(name))
    assert not optimizer.state_dict()["state"]
    train(model, optimizer, range(1))
    state = optimizer.state_dict()["state"]
    assert sorted(state) == list(range(len(list(model.parameters()))))
    assert all(isinstance(value, Tensor) for fields in state.values() for value in fields.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    def parts(seed: int) -> tuple[Objective, Optimizer, Checkpoints]:
        objective = Objective(
            build_model(tiny.model_config("llama"), vocab_size=VOCAB_SIZE, token_ids=TokenIds(), seed=seed)
        )
        optimizer = make_optimizer(objective, config_for(name))
        return objective, optimizer, Checkpoints(tmp_path / "checkpoints", objective, optimizer, {"run": name})

    whole, optimizer, checkpoints = parts(seed=1)
    train(whole, optimizer, range(3))
    checkpoints.save(Progress(3))
    train(whole, optimizer, range(3, 6))

    stopped, again, checkpoints = parts(seed=2)
    train(stopped, again, range(1))  # whatever it was before
    assert checkpoints.restore().step == 3
    train(stopped, again, range(3, 6))
    assert all(torch.equal(value, values(stopped)[name]) for name, value in values(whole).items())
    kept, found = optimizer.state_dict(), again.state_dict()
    assert kept["param_groups"] == found["param_groups"]
    for index, fields in kept["state"].items():
        assert all(torch.equal(value, found["state"][index][field]) for field, value in fields.items())


def test_an_average_goes_on_where_it_stopped() -> None:
    """Its weights are all that a checkpoint keeps of it; the step says how many it is the mean of."""
    whole, model = MovingAverage(a_model(), 0.7), a_model()
    resumed, trajectory = None, []
    for step in range(1, 7):
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(0.5).add_(step)
        trajectory.append(values(model))
        whole.update(model, step)
        if resumed:
            resumed.update(model, step)
        if step == 3:
            resumed = MovingAverage(model, 0.7)
            resumed.model.load_state_dict(whole.model.state_dict())
    assert resumed is not None
    assert not any(weight.requires_grad for weight in whole.model.parameters()) and not whole.model.training
    shares = [0.7 ** (6 - step) for step in range(1, 7)]
    for name, value in values(whole.model).items():
        assert torch.equal(value, values(resumed.model)[name])
        expected = sum(share * weights[name] for share, weights in zip(shares, trajectory, strict=True)) / sum(shares)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=in_weight(name))


# in shards


SHARDED = """
import os
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from distill.averaging import MovingAverage
from distill.learning_rate import set_learning_rate
from distill.objective import Objective
from distill.optim import make_optimizer
from test_optim import OPTIMIZERS, a_model, config_for, give_gradients, train, values

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
CHANGES = {"hidden_size": 12, "num_heads": 2, "intermediate_size": 27}  # rows that do not divide evenly


def sharded(model):
    for layer in model.network.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


for name in OPTIMIZERS:
    whole, model = a_model(**CHANGES), a_model(**CHANGES)
    before = values(whole)
    average = MovingAverage(model, 0.5)
    sharded(average.model)
    objective = fully_shard(Objective(sharded(model)), mesh=mesh)
    optimizer = make_optimizer(objective, config_for(name, weight_decay=0.3))
    reference = make_optimizer(whole, config_for(name, weight_decay=0.3))
    expected_average = MovingAverage(whole, 0.5)
    for step in range(3):
        train(whole, reference, range(step, step + 1))
        for parameter, twin in zip(model.parameters(), whole.parameters(), strict=True):
            parameter.grad = distribute_tensor(twin.grad, mesh, parameter.placements)
        set_learning_rate(optimizer, 1e-2 / (step + 1))
        optimizer.step()
        average.update(model, step + 1)
        expected_average.update(whole, step + 1)
    # Muon multiplies in bf16, whose sums depend on how they are divided up
    allowed = 0.06 if name == "muon" else 1e-5
    for found, expected in ((model, whole), (average.model, expected_average.model)):
        for key, parameter in found.named_parameters():
            way = values(expected)[key] - before[key]
            difference = parameter.full_tensor() - values(expected)[key]
            assert difference.norm() <= allowed * way.norm(), (name, key, float(difference.norm() / way.norm()))
    assert any(parameter.to_local().numel() * 2 != parameter.numel() for parameter in model.parameters())
print("equal", flush=True)
dist.barrier()
os._exit(0)  # FSDP2's groups outlive theirs, and gloo's threads abort a process that ends before them
"""


def test_in_shards_every_optimizer_takes_the_same_steps(tmp_path: Path) -> None:
    """FSDP2 in two processes: norms and matrices are of the whole parameter, wherever its parts are."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    finished = torchrun(2, script)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("equal") == 2
