"""LoRA against Hugging Face PEFT: outputs, gradients, and adapters that travel both ways as files."""

import copy
import dataclasses
import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from tests.parity.qwen_reference import IMAGE, Case, convert, error, make_reference, processed, small_config  # noqa: E402
from wmjax.models.backbones.qwen2_5_vl import adapters, names, weights  # noqa: E402
from wmjax.models.backbones.qwen2_5_vl.rope import positions_of  # noqa: E402
from wmjax.models.nn.lora import TEXT_PROJECTIONS, VISION_PROJECTIONS, LoRAConfig  # noqa: E402

pytestmark = pytest.mark.torch

TOLERANCE = 1e-4
CASE = Case([([(140, 112)], 6), ([(56, 84)] * 2, 9), ([], 5)])
SETUPS = {
    "text": LoRAConfig(rank=4, alpha=8.0),
    "text and vision, rank-stabilised": LoRAConfig(
        rank=3, alpha=5.0, rank_stabilised=True, vision_targets=VISION_PROJECTIONS
    ),
    "some projections of some layers": LoRAConfig(
        rank=2, alpha=7.0, targets=("q_proj", "up_proj"), vision_targets=("qkv", "down_proj"), layers=(0, 2)
    ),
}


@dataclasses.dataclass
class Pair:
    """The same adapted model twice."""

    reference: peft.PeftModel
    model: weights.Qwen2_5_VL
    folder: str


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if "and" in name else pytest.mark.long) for name in SETUPS]
)
def pair(request, tmp_path_factory):
    """PEFT's model with random adapters, saved by PEFT and loaded by us."""
    lora = SETUPS[request.param]
    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("adapters")
    config = small_config()
    reference = make_reference(config)
    convert(reference, config, base)
    wanted = adapters.to_peft_config(dataclasses.replace(config, lora=lora))
    reference = peft.get_peft_model(reference, peft.LoraConfig(**wanted)).eval()
    randomise(reference)
    reference.save_pretrained(folder)
    config = adapters.configure(config, folder)
    assert set(config.lora.targets) == set(lora.targets) and config.lora.layers == lora.layers
    model = weights.load_model(base, config)
    adapters.load(model, folder)
    return Pair(reference, model, str(folder))


def randomise(reference):
    """Adapters that change outputs by about a half; PEFT's own start would make the gradients of A zero."""
    torch.manual_seed(1)
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data.normal_(0, (0.25 if "lora_B" in name else 1) * parameter.shape[1] ** -0.5)


def run_reference(reference, case=CASE):
    """The reference's logits, without padding."""
    tokens, mask = case.tokens()
    pixels, grids = processed(case.images)
    return reference(
        input_ids=torch.from_numpy(tokens).long(),
        attention_mask=torch.from_numpy(mask).long(),
        mm_token_type_ids=torch.from_numpy(tokens == IMAGE).int(),
        pixel_values=pixels.to(next(reference.parameters()).dtype),
        image_grid_thw=grids,
        use_cache=False,
    ).logits[torch.from_numpy(mask)]


def reference_gradients(reference, case, probe):
    """Of sum(logits * probe), by published name."""
    reference.zero_grad()
    logits = run_reference(reference, case)
    (logits * torch.from_numpy(probe).to(logits.dtype)).sum().backward()
    named = ((n.removeprefix(names.PEFT_PREFIX).replace(".default", ""), p) for n, p in reference.named_parameters())
    return {names.published_name(name): p.grad.numpy().copy() for name, p in named if p.requires_grad}


@functools.partial(jax.jit, static_argnums=0)
def run_ours(graph, state, images, tokens, positions, mask):
    model = nnx.merge(graph, state)
    x = model.embed(tokens, [image[None] for image in images])
    return model.logits(model.forward(x, positions, mask))


def inputs(case=CASE):
    """What our model takes for a case."""
    tokens, mask = case.tokens()
    grids = [(i.shape[0] // 28, i.shape[1] // 28) for i in case.images]
    return case.images, tokens, positions_of(tokens, mask, grids, IMAGE), mask


def logits(model):
    """Ours, without padding."""
    return np.asarray(run_ours(*nnx.split(model), *inputs()))[inputs()[-1]]


def gradients(model, case, probe):
    """Of sum(logits * probe), by published name and in PEFT's layout."""
    graph, lora, rest = nnx.split(model, nnx.LoRAParam, ...)
    arguments = inputs(case)

    def loss(lora, rest):
        found = run_ours(graph, nnx.merge_state(lora, rest), *arguments)
        return jnp.sum(found[np.nonzero(arguments[-1])] * probe)

    found = dict(nnx.to_flat_state(jax.jit(jax.grad(loss))(lora, rest)))
    entries = names.adapter_entries(model.config)
    return {e.name: names.to_checkpoint(found[e.path].get_value(), e) for e in entries}


def make_probe(case):
    return np.random.default_rng(3).normal(size=(int(case.tokens()[1].sum()), 128)).astype(np.float32)


def errors(found, wanted):
    """The error of every gradient, none of which may be zero in the reference."""
    assert set(found) == set(wanted) and all(np.abs(g).max() > 0 for g in wanted.values())
    return {name: error(found[name], wanted[name]) for name in wanted}


def test_adapters_saved_by_peft_give_the_same_logits(pair):
    with torch.no_grad():
        wanted = run_reference(pair.reference)
        with pair.reference.disable_adapter():
            plain = run_reference(pair.reference)
    assert error(logits(pair.model), wanted) < TOLERANCE
    assert error(plain, wanted) > 0.05  # otherwise the adapters would not be tested


@pytest.mark.slow
def test_gradients_of_every_adapter(pair):
    probe = make_probe(CASE)
    found = errors(gradients(pair.model, CASE, probe), reference_gradients(pair.reference, CASE, probe))
    assert max(found.values()) < TOLERANCE, max(found.items(), key=lambda item: item[1])


@pytest.mark.long
def test_gradients_err_as_float32_does(pair):
    """At most three times PEFT's own float32 error against float64, in the worst adapter and in the median."""
    case = Case([([(140, 112), (56, 84)], 9)])  # unpadded: the reference's float64 gives NaN at padding
    probe = make_probe(case)
    exact = reference_gradients(copy.deepcopy(pair.reference).double(), case, probe)
    own = list(errors(reference_gradients(pair.reference, case, probe), exact).values())
    ours = list(errors(gradients(pair.model, case, probe), exact).values())
    assert max(ours) < 3 * max(own) and np.median(ours) < 3 * np.median(own)


def test_adapters_saved_by_us_are_loaded_by_peft(pair, tmp_path):
    adapters.save(pair.model, tmp_path / "ours")
    theirs = load_file(f"{pair.folder}/adapter_model.safetensors")
    ours = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    base = make_reference(small_config())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of keys that it misses
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(run_reference(loaded), run_reference(pair.reference), rtol=0, atol=0)


def test_merged_weights_are_those_of_peft(pair, tmp_path):
    merged = adapters.merge(pair.model)
    assert merged.config.lora.rank == 0 and not names.adapter_leaves(merged)
    assert error(logits(merged), logits(pair.model)) < TOLERANCE
    weights.save(merged, tmp_path)
    ours = load_file(tmp_path / "model.safetensors")
    peft.PeftModel.from_pretrained(make_reference(small_config()), pair.folder).merge_and_unload().save_pretrained(
        tmp_path / "peft"
    )
    theirs = load_file(tmp_path / "peft" / "model.safetensors")
    assert {names.published_name(name) for name in theirs} == set(ours)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[names.published_name(name)], value, atol=1e-6, err_msg=name)


def test_a_configuration_of_peft_by_suffix_is_understood(tmp_path):
    """The usual way: short names in a list, which match projections of both stacks."""
    config = small_config()
    reference = peft.get_peft_model(
        make_reference(config), peft.LoraConfig(r=2, target_modules=["gate_proj", "v_proj"], lora_dropout=0.1)
    )
    reference.save_pretrained(tmp_path)
    lora = adapters.configure(config, tmp_path).lora
    assert lora == LoRAConfig(
        rank=2, alpha=8.0, dropout=0.1, targets=("v_proj", "gate_proj"), vision_targets=("gate_proj",)
    )
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert set(lora.targets) < set(TEXT_PROJECTIONS)
