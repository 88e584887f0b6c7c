from __future__ import annotations

import pytest
import torch

from scstate_lora.io.published.se_tensors import arc_sizes, from_arc_names, take_arc_state, to_arc_names
from scstate_lora.model.se.pretrained import se_tensors
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

D, HID, OUT, TOKEN = 8, 12, 6, 5


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    config = SEConfig(token_dim=TOKEN, d_model=D, n_layers=2, n_heads=2, d_hid=HID, output_dim=OUT, n_tokens=4)
    return SEEncoder(config, torch.randn(7, TOKEN)).state_dict()


def test_names_and_shapes_are_the_published_ones() -> None:
    layer = {
        "qkv_proj.weight": (3 * D, D),
        "qkv_proj.bias": (3 * D,),
        "out_proj.weight": (D, D),
        "out_proj.bias": (D,),
        "norm1.weight": (D,),
        "norm1.bias": (D,),
        "norm2.weight": (D,),
        "norm2.bias": (D,),
        "linear1.weight": (HID, D),
        "linear1.bias": (HID,),
        "linear2.weight": (D, HID),
        "linear2.bias": (D,),
    }

    def skip(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{prefix}.intermediate_dense.weight": (2 * width, width),
            f"{prefix}.intermediate_dense.bias": (2 * width,),
            f"{prefix}.dense.weight": (width, 2 * width),
            f"{prefix}.dense.bias": (width,),
            f"{prefix}.layer_norm.weight": (width,),
            f"{prefix}.layer_norm.bias": (width,),
        }

    width = OUT + D + 1
    expected = {
        "cls_token": (1, TOKEN),
        "encoder.0.weight": (D, TOKEN),
        "encoder.0.bias": (D,),
        "encoder.1.weight": (D,),
        "encoder.1.bias": (D,),
        **{f"transformer_encoder.layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()},
        **skip("decoder.0", D),
        "decoder.1.weight": (OUT, D),
        "decoder.1.bias": (OUT,),
        "bin_encoder.weight": (10, D),
        "count_encoder.0.weight": (512, 1),
        "count_encoder.0.bias": (512,),
        "count_encoder.2.weight": (10, 512),
        "count_encoder.2.bias": (10,),
        **skip("binary_decoder.0", width),
        **skip("binary_decoder.1", width),
        "binary_decoder.2.weight": (1, width),
        "binary_decoder.2.bias": (1,),
    }
    assert {name: tuple(t.shape) for name, t in to_arc_names(_state()).items()} == expected


def test_qkv_is_stacked_in_this_order() -> None:
    state = _state()
    stacked = to_arc_names(state)["transformer_encoder.layers.1.qkv_proj.weight"]
    for i, part in enumerate("qkv"):
        ours = state[f"transformer_encoder.layers.1.self_attn.{part}_proj.weight"]
        assert torch.equal(stacked[i * D : (i + 1) * D], ours)


def test_round_trip() -> None:
    state = _state()
    back = from_arc_names(to_arc_names(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_compiled_infix_is_dropped() -> None:
    state = _state()
    compiled = {name.replace("layers.", "layers._orig_mod.", 1): t for name, t in to_arc_names(state).items()}
    assert from_arc_names(compiled).keys() == state.keys()


def test_incomplete_attention_raises() -> None:
    state = _state()
    del state["transformer_encoder.layers.0.self_attn.k_proj.bias"]
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.k_proj\.bias is missing"):
        to_arc_names(state)


def test_rows_not_in_three_parts_raises() -> None:
    with pytest.raises(ValueError, match=r"qkv_proj\.weight has shape \(10, 4\)"):
        from_arc_names({"transformer_encoder.layers.0.qkv_proj.weight": torch.zeros(10, 4)})


def test_sizes_and_shapes_are_read_off_the_tensors() -> None:
    published = to_arc_names(_state())
    sizes = arc_sizes(published, source="it")
    assert sizes == {
        "token_dim": TOKEN,
        "d_model": D,
        "n_layers": 2,
        "d_hid": HID,
        "output_dim": OUT,
        "counts": True,
        "rda": True,
        "dataset_correction": False,
    }
    expected = to_arc_names(se_tensors(sizes))
    assert {name: t.shape for name, t in expected.items()} == {name: t.shape for name, t in published.items()}


def test_taken_are_views_and_only_what_is_needed() -> None:
    published = to_arc_names(_state())
    published["gene_embedding_layer.0.weight"] = published["encoder.0.weight"]
    published["pe_embedding.weight"] = torch.zeros(3, TOKEN)
    sizes, taken = take_arc_state(published, se_tensors, source="it")
    assert sizes["d_model"] == D
    assert taken.keys() == _state().keys()
    stacked = published["transformer_encoder.layers.0.qkv_proj.weight"]
    assert taken["transformer_encoder.layers.0.self_attn.q_proj.weight"].data_ptr() == stacked.data_ptr()


def test_nothing_that_shows_a_size_raises() -> None:
    with pytest.raises(ValueError, match=r"it lacks encoder\.1\.weight or gene_embedding_layer\.1\.weight or bin_enc"):
        arc_sizes({"cls_token": torch.zeros(1, 3)}, source="it")


def test_one_name_with_and_without_infix_raises() -> None:
    twice = {"decoder.1.bias": torch.zeros(1), "decoder._orig_mod.1.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"decoder\.1\.bias is stored twice"):
        from_arc_names(twice)
