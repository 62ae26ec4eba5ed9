"""The Flax V-JEPA 2 encoder against ``transformers`` on random weights, float32."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wmjax.encoders.vjepa2 import VJEPA2Config, VJEPA2Encoder, latents, preprocess, preset
from wmjax.encoders.vjepa2.config import IMAGENET_MEAN, IMAGENET_STD, from_hf_config, to_hf_config
from wmjax.encoders.vjepa2.files import MINI_FOLDER
from wmjax.encoders.vjepa2.weights import encoder_from_tree, load_encoder, save_encoder, tree_from_hf, tree_to_hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LIMIT = 1e-4
CASES = {
    "mini": (preset("mini"), 4),
    "vitl-slice": (dataclasses.replace(preset("vitl"), num_layers=2, image_size=64, resize=64), 4),
    "vitg-head": (dataclasses.replace(preset("vitg"), num_layers=1, image_size=32, resize=32), 2),
    "one-frame": (dataclasses.replace(preset("mini"), num_layers=2), 1),
}


def hf_model(config: VJEPA2Config, seed: int = 0):
    """A Hugging Face model with every parameter (norms and biases too) drawn at random."""
    values = {k: v for k, v in to_hf_config(config).items() if k not in ("architectures", "model_type", "resize")}
    small = {"pred_hidden_size": 32, "pred_num_attention_heads": 1, "pred_num_hidden_layers": 1}
    torch.manual_seed(seed)
    model = transformers.VJEPA2Model(transformers.VJEPA2Config(**values, **small)).eval()
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(torch.randn_like(p) * 0.03)
    return model


def relative(a, b) -> float:
    """max |a - b| over the root mean square of the reference b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / np.sqrt((b**2).mean()))


def ported(model, config: VJEPA2Config) -> VJEPA2Encoder:
    """The Flax encoder with the reference's weights."""
    tensors = {k: v.numpy() for k, v in model.state_dict().items()}
    return encoder_from_tree(tree_from_hf(tensors.__getitem__, config), config)


@pytest.mark.parametrize("case", CASES)
def test_every_layer_and_output_match_transformers(case):
    config, frames = CASES[case]
    model = hf_model(config)
    clip = np.random.default_rng(1).normal(size=(2, frames, config.image_size, config.image_size, 3))
    clip = clip.astype(np.float32)
    raw = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: raw.append(out[0])) for layer in model.encoder.layer]
    with torch.no_grad():
        features = model.get_vision_features(torch.from_numpy(clip).permute(0, 1, 4, 2, 3))
    for hook in hooks:
        hook.remove()
    encoder = ported(model, config)
    output, layers = encoder.hidden_states(jnp.asarray(clip))
    assert layers.shape[0] == config.num_layers == len(raw)
    for ours, reference in zip(layers, raw, strict=True):
        assert relative(ours, reference) < LIMIT
    assert relative(output, features) < LIMIT
    assert relative(encoder(jnp.asarray(clip)).reshape(features.shape), features) < LIMIT


def test_a_wrong_rotary_table_would_be_noticed(monkeypatch):
    config, frames = CASES["one-frame"]
    model = hf_model(config)
    encoder = ported(model, config)
    clip = np.random.default_rng(1).normal(size=(1, frames, 112, 112, 3)).astype(np.float32)
    with torch.no_grad():
        features = model.get_vision_features(torch.from_numpy(clip).permute(0, 1, 4, 2, 3))
    from wmjax.encoders.vjepa2 import model as module

    table = module.rotary_table
    monkeypatch.setattr(module, "rotary_table", lambda *a: tuple(-t[::-1] for t in table(*a)))
    assert relative(encoder.hidden_states(jnp.asarray(clip))[0], features) > 100 * LIMIT


def test_safetensors_written_here_are_read_by_transformers_and_back(tmp_path: Path):
    config = CASES["one-frame"][0]
    encoder = ported(hf_model(config), config)
    save_encoder(encoder, tmp_path)
    model, info = transformers.VJEPA2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert all(k.startswith("predictor.") for k in info["missing_keys"]) and not info["unexpected_keys"]
    theirs = {k: v.numpy() for k, v in model.state_dict().items() if k.startswith("encoder.")}
    ours = tree_to_hf(nnx.to_pure_dict(nnx.state(load_encoder(tmp_path))), config)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_sizes_of_published_checkpoints():
    """The published ViT-L encoder has 303,885,312 parameters."""

    def count(config):
        state = nnx.state(nnx.eval_shape(lambda: VJEPA2Encoder(config, rngs=nnx.Rngs(0))))
        return sum(int(np.prod(p.shape)) for p in nnx.to_flat_state(state).leaves)

    assert count(preset("vitl")) == 303_885_312
    config = transformers.VJEPA2Config(
        hidden_size=1408, num_attention_heads=22, num_hidden_layers=40, mlp_ratio=48 / 11
    )
    assert from_hf_config(config.to_dict()) == preset("vitg")


@pytest.mark.parametrize("size", [(256, 256), (128, 128), (480, 480), (240, 321)])
def test_preprocessing_matches_the_reference_formula(size: tuple[int, int]):
    """Torch's antialiased bilinear resize to 292 (the long edge cut to a whole number, as torchvision does), rounded to
    8 bits, crop 256, ImageNet normalisation."""
    config = preset("vitl")
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, *size, 3), np.uint8)
    long = int(292 * max(size) / min(size))
    x = torch.from_numpy(frames[0]).permute(0, 3, 1, 2).float()
    x = torch.nn.functional.interpolate(x, (292, long), mode="bilinear", antialias=True, align_corners=False)
    left = (long - 256) // 2
    x = x.round().clamp(0, 255)[..., 18:274, left : left + 256] / 255
    reference = (x - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    ours = np.asarray(preprocess(jnp.asarray(frames), config))[0].transpose(0, 3, 1, 2)
    assert ours.shape == (2, 3, 256, 256)
    one_level = 1 / 255 / min(IMAGENET_STD)
    difference = np.abs(ours - reference.numpy())
    assert difference.max() <= one_level * 1.001  # a value on the edge between two levels may round the other way
    assert (difference > 1e-5).mean() < 1e-3


def test_shipped_mini_encoder_is_the_same_model_in_both_frameworks():
    config = preset("mini")
    model = transformers.VJEPA2Model.from_pretrained(MINI_FOLDER, dtype=torch.float32).eval()
    clip = np.random.default_rng(2).integers(0, 256, (2, 4, 112, 112, 3), np.uint8)
    pixels = np.array(preprocess(jnp.asarray(clip), config))
    with torch.no_grad():
        tokens = model.get_vision_features(torch.from_numpy(pixels).permute(0, 1, 4, 2, 3))
    pooled = tokens.reshape(2, 2, 4, 2, 4, 2, 192)[:, 1].mean(dim=(2, 4)).reshape(2, 16, 192)
    assert relative(latents(load_encoder(MINI_FOLDER), jnp.asarray(clip), 4), pooled) < LIMIT
