from __future__ import annotations

import hashlib
import logging
import pickle
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scstate_lora.io.pickle.reader import UnsafePickleError, load_torch
from scstate_lora.io.published import st_checkpoint, st_files
from scstate_lora.io.published.st_checkpoint import backbone_state, check_embedding, match_genes
from scstate_lora.model.st.published import st_tensors

ARC = Path(__file__).parents[2] / "data" / "arc_st"
"""Small models that arc-state wrote."""
FORMS = sorted(path.name for path in ARC.iterdir() if path.is_dir())
read_st_folder = partial(st_checkpoint.read_st_folder, expected_tensors=st_tensors)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ARC / "trained", tmp_path / "ST-Tahoe"))


def _change(folder: Path, change: Any) -> None:
    """Have a function change what the checkpoint holds."""
    file = folder / "checkpoints" / "final.ckpt"
    stored = load_torch(file, mmap=False)
    change(stored)
    torch.save(stored, file)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_agrees_with_what_the_file_says(form: str) -> None:
    model = read_st_folder(ARC / form)
    hyper, sizes = model.hyper_parameters, model.sizes
    backbone = hyper["transformer_backbone_kwargs"]
    heads = (backbone["n_head"], 8) if form == "gpt2" else (backbone["num_attention_heads"], backbone["head_dim"])
    assert (sizes["n_heads"], sizes["head_dim"]) == heads
    assert sizes["n_layers"] == 2
    assert (sizes["n_inputs"], sizes["pert_dim"], sizes["hidden"]) == (hyper["input_dim"], 4, 16)
    assert sizes["n_encoder_layers"] == hyper["n_encoder_layers"]
    assert sizes["n_decoder_layers"] == hyper["n_decoder_layers"]
    assert all(type(name) is str for name in (*model.genes, *model.perturbations, *model.cell_types, *model.batches))
    assert list(model.perturbations) == ["IFNG", "MYC+KRAS", "TP53", "non-targeting"]
    assert model.batches == {"batch0": 0, "batch1": 1, "batch2": 2}
    assert model.cell_types == ["type0", "type1"]
    assert model.control in model.perturbations
    assert all(tensor.dtype == torch.float32 for tensor in model.state.values())
    assert not any("embed_tokens" in n or "wte" in n or "lora_" in n or "base_model" in n for n in model.state)
    assert model.licence.startswith("unknown; Arc's published ST weights are non-commercial")


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("trained", {"residual": "latent", "non_negative": True, "basal_mlp": True, "decoder_dims": None}),
        ("bare_basal", {"basal_mlp": False, "n_encoder_layers": 4, "n_decoder_layers": 1}),
        ("decoder", {"decoder_dims": (12, 10), "n_genes": 12, "non_negative": False, "n_encoder_layers": 1}),
        ("residual_decoder", {"residual": "down_up", "decoder_residual": True, "n_genes": 30}),
        ("embedding", {"residual": "none", "non_negative": True, "activation": "leakyrelu", "decoder_dims": None}),
        ("raw", {"residual": "down_up", "non_negative": True, "decoder_dims": None}),
        ("batch_encoder", {"n_batches": 3}),
        ("tokens", {"batch_classes": 3, "confidence_token": True}),
        ("gpt2", {"backbone": "gpt2", "basal_mlp": False, "intermediate": 64}),
    ],
)
def test_form_of_the_network(form: str, expected: dict[str, Any]) -> None:
    sizes = read_st_folder(ARC / form).sizes
    assert {name: sizes[name] for name in expected} == expected


def test_genes_belong_to_what_reads_or_predicts_them() -> None:
    assert read_st_folder(ARC / "trained").input_genes[:3] == ["GENE0", "GENE1", "GENE5"]
    assert len(read_st_folder(ARC / "raw").input_genes) == 30
    decoder = read_st_folder(ARC / "decoder")
    assert (len(decoder.genes), decoder.input_genes) == (12, [])
    assert read_st_folder(ARC / "embedding").genes == []


@pytest.mark.parametrize(("form", "module"), [("bare_basal", "layers.1.self_attn.v_proj"), ("gpt2", "h.1.mlp.c_proj")])
def test_adapters_are_merged_into_the_weights(form: str, module: str) -> None:
    model = read_st_folder(ARC / form)
    stored = load_torch(model.path)["state_dict"]
    prefix = f"transformer_backbone.base_model.model.{module}."
    change = stored[f"{prefix}lora_B.default.weight"] @ stored[f"{prefix}lora_A.default.weight"] * 32 / 3
    base = stored[f"{prefix}base_layer.weight"]
    merged = model.state[f"transformer_backbone.{module}.weight"]
    torch.testing.assert_close(merged, base + (change.T if form == "gpt2" else change))
    assert (merged - base).abs().max() > 0.1


def test_backbone_alone_needs_no_other_file(tmp_path: Path) -> None:
    file = shutil.copy(ARC / "decoder" / "checkpoints" / "final.ckpt", tmp_path / "somewhere.ckpt")
    model = read_st_folder(file, reuse="backbone")
    state = backbone_state(model)
    assert sorted(state)[:2] == ["layers.0.input_layernorm.weight", "layers.0.mlp.down_proj.weight"]
    assert len(state) == len(model.state) == 19
    assert "n_inputs" not in model.sizes
    whole = read_st_folder(ARC / "decoder")
    assert all(torch.equal(tensor, state[name]) for name, tensor in backbone_state(whole).items())
    with pytest.raises(FileNotFoundError, match=r"no pert_onehot_map\.pt.*reuse='backbone'"):
        read_st_folder(file)


def test_the_last_checkpoint_is_chosen(folder: Path) -> None:
    checkpoints = folder / "checkpoints"
    for name in ("last.ckpt", "best.ckpt", "step=900.ckpt", "step=1000.ckpt"):
        shutil.copy(checkpoints / "final.ckpt", checkpoints / name)
    chosen = []
    for name in ("final.ckpt", "last.ckpt", "best.ckpt", "step=1000.ckpt"):
        chosen.append(read_st_folder(folder).path.name)
        (checkpoints / name).unlink()
    assert chosen == ["final.ckpt", "last.ckpt", "best.ckpt", "step=1000.ckpt"]
    (checkpoints / "step=900.ckpt").rename(folder / "final.ckpt")  # as older ones have it
    model = read_st_folder(folder)
    assert model.path == folder / "final.ckpt"
    assert model.name == "ST-Tahoe (final.ckpt)"


def test_a_checkpoint_itself_belongs_to_its_folder(folder: Path) -> None:
    model = read_st_folder(folder / "checkpoints" / "final.ckpt")
    assert model.name == "ST-Tahoe (final.ckpt)"
    assert len(model.perturbations) == 4
    assert model.sha256 == hashlib.sha256(model.path.read_bytes()).hexdigest()
    assert len(read_st_folder(folder / "checkpoints").perturbations) == 4
    (folder / "LICENSE").write_text("Some licence\n")
    assert read_st_folder(folder).licence == "Some licence (LICENSE)"


def test_nothing_there_raises(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*absent.*checkpoints/final\.ckpt"):
        read_st_folder(tmp_path / "absent")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(FileNotFoundError, match=r"holds neither checkpoints/final\.ckpt.*var_dims\.pkl"):
        read_st_folder(folder)
    (folder / "a.ckpt").touch()
    (folder / "b.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"several checkpoints.*a\.ckpt, b\.ckpt"):
        read_st_folder(folder)


def test_a_folder_of_several_models_names_them_raises(tmp_path: Path) -> None:
    for name in ("hepg2", "k562"):
        shutil.copytree(ARC / "trained", tmp_path / "zeroshot" / name)
    (tmp_path / "zeroshot" / "k562" / "eval_final.ckpt").mkdir()  # Arc's results lie in folders of such names
    expected = rf"zeroshot/hepg2, zeroshot/k562\. Give one: '{tmp_path}/zeroshot/hepg2'"
    with pytest.raises(FileNotFoundError, match=expected):
        read_st_folder(tmp_path)
    assert read_st_folder(tmp_path / "zeroshot" / "k562").name == "k562 (final.ckpt)"


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/final.ckpt",
        "pert_onehot_map.pt",
        "var_dims.pkl",
        "batch_onehot_map.torch",
        "cell_type_onehot_map.torch",
    ],
)
def test_damaged_file_raises(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\x80\x04junk"):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{Path(name).name} .*(truncated|damaged|copy it again)"):
            read_st_folder(folder)


def test_configuration_that_is_no_yaml_raises(folder: Path) -> None:
    (folder / "config.yaml").write_text("data: [")
    with pytest.raises(ValueError, match=r"config\.yaml is not valid YAML"):
        read_st_folder(folder)
    (folder / "config.yaml").write_text("3")
    with pytest.raises(ValueError, match=r"config\.yaml holds int"):
        read_st_folder(folder)


class _Code:
    def __reduce__(self) -> Any:
        return Path.write_text, (Path(self.path), "it ran")

    def __init__(self, path: Path) -> None:
        self.path = str(path)


def test_files_with_code_are_refused_and_not_run_raises(folder: Path, tmp_path: Path) -> None:
    written = tmp_path / "written"
    torch.save({"TP53": _Code(written)}, folder / "pert_onehot_map.pt")
    with pytest.raises(UnsafePickleError, match=r"pert_onehot_map\.pt asks for .*It was not run"):
        read_st_folder(folder)
    shutil.copy(ARC / "trained" / "pert_onehot_map.pt", folder)
    (folder / "var_dims.pkl").write_bytes(pickle.dumps({"input_dim": _Code(written)}))
    with pytest.raises(UnsafePickleError, match=r"var_dims\.pkl asks for"):
        read_st_folder(folder)
    shutil.copy(ARC / "trained" / "var_dims.pkl", folder)
    _change(folder, lambda stored: stored["hyper_parameters"].update(lr=_Code(written)))
    with pytest.raises(UnsafePickleError, match=r"final\.ckpt asks for"):
        read_st_folder(folder)
    assert not written.exists()


def test_the_data_module_is_not_read(folder: Path, tmp_path: Path) -> None:
    torch.save(_Code(tmp_path / "written"), folder / "data_module.torch")
    assert read_st_folder(folder).sizes["n_inputs"] == 12
    assert not (tmp_path / "written").exists()


def test_tensors_that_are_not_the_networks_raises(folder: Path) -> None:
    def change(stored: dict[str, Any]) -> None:
        state = stored["state_dict"]
        del state["transformer_backbone.layers.1.mlp.up_proj.weight"]
        state["transformer_backbone.layers.0.input_layernorm.bias"] = torch.zeros(16)
        state["transformer_backbone.layers.0.self_attn.o_proj.weight"] = torch.zeros(16, 7)

    _change(folder, change)
    with pytest.raises(ValueError, match="nothing was loaded") as raised:
        read_st_folder(folder)
    for problem in (
        "missing: transformer_backbone.layers.1.mlp.up_proj.weight (16, 16)",
        "unexpected: transformer_backbone.layers.0.input_layernorm.bias (16,)",
        "shape: transformer_backbone.layers.0.self_attn.o_proj.weight is (16, 7), expected (16, 12)",
    ):
        assert problem in str(raised.value)


def test_other_tensors_that_are_not_the_networks_raises(folder: Path) -> None:
    _change(folder, lambda stored: stored["state_dict"].update({"project_out.3.scale": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"unexpected: project_out\.3\.scale \(2,\)"):
        read_st_folder(folder)
    assert read_st_folder(folder, reuse="backbone").sizes["hidden"] == 16


def test_a_network_that_predicts_other_features_than_it_reads_raises(folder: Path) -> None:
    def change(stored: dict[str, Any]) -> None:
        last = max(name for name in stored["state_dict"] if name.startswith("project_out."))  # its weight
        stored["state_dict"] |= {last: torch.zeros(9, 16), last.replace("weight", "bias"): torch.zeros(9)}
        stored["hyper_parameters"]["output_dim"] = 9

    _change(folder, change)
    with pytest.raises(ValueError, match=r"reads 12 features per cell and predicts 9.*reuse='backbone'"):
        read_st_folder(folder)
    assert read_st_folder(folder, reuse="backbone").sizes["hidden"] == 16


def test_compiled_names_and_unused_parts_are_understood(folder: Path) -> None:
    plain = read_st_folder(folder)

    def change(stored: dict[str, Any]) -> None:
        state = stored["state_dict"]
        stored["state_dict"] = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
        stored["state_dict"]["final_down_then_up.0.weight"] = torch.zeros(1, 12)  # of a model without a residual
        stored["hyper_parameters"]["hvg_dim"] = np.int64(12)

    _change(folder, change)
    model = read_st_folder(folder)
    assert {n: tuple(t.shape) for n, t in model.state.items()} == {n: tuple(t.shape) for n, t in plain.state.items()}


def test_the_loss_that_arc_state_keeps_as_an_object_is_read_past(folder: Path) -> None:
    _change(folder, lambda stored: stored["hyper_parameters"].update(loss_fn=torch.nn.MSELoss()))
    assert isinstance(read_st_folder(folder).hyper_parameters["loss_fn"], dict)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_attn": True}, "masks the attention.*reuse='backbone'"),
        ({"activation": "mish"}, "activation 'mish'.*relu"),
        ({"input_dim": 13}, "input_dim is 13 in its hyper_parameters, 12 by its tensors"),
        ({"transformer_backbone_key": "mamba"}, "backbone 'mamba'"),
        ({"transformer_backbone_kwargs": {"bidirectional_attention": False}}, "bidirectional_attention=False"),
        ({"transformer_backbone_kwargs": {"num_attention_heads": 2, "num_key_value_heads": 1}}, "shares 1 keys"),
        ({"transformer_backbone_kwargs": {"num_attention_heads": 5}}, "5 heads do not divide a width of 12"),
        ({"transformer_backbone_kwargs": {"num_attention_heads": 2, "hidden_act": "gelu"}}, "hidden_act='gelu'"),
        ({"transformer_backbone_kwargs": {"num_attention_heads": 2, "rms_norm_eps": 1e-5}}, "rms_norm_eps=1e-05"),
    ],
)
def test_options_that_are_not_supported_raises(folder: Path, change: dict[str, Any], message: str) -> None:
    _change(folder, lambda stored: stored["hyper_parameters"].update(change))
    with pytest.raises(ValueError, match=message):
        read_st_folder(folder)


def test_learned_positions_raises(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ARC / "gpt2", tmp_path / "gpt2"))
    name = "transformer_backbone.base_model.model.wpe.weight"
    _change(folder, lambda stored: stored["state_dict"].update({name: torch.ones(4, 16)}))
    with pytest.raises(ValueError, match="learned positions"):
        read_st_folder(folder)


def test_decoder_that_holds_an_se_raises_but_its_backbone_is_read(folder: Path) -> None:
    _change(folder, lambda stored: stored["state_dict"].update({"gene_decoder.finetune.model.x": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"finetune_vci_decoder.*reuse='backbone'"):
        read_st_folder(folder)
    assert len(backbone_state(read_st_folder(folder, reuse="backbone"))) == 19


def test_attention_that_is_not_stated_is_noted(folder: Path) -> None:
    _change(
        folder, lambda stored: stored["hyper_parameters"]["transformer_backbone_kwargs"].pop("bidirectional_attention")
    )
    assert "it is assumed" in read_st_folder(folder).notes[0]
    assert read_st_folder(ARC / "trained").notes == []


def test_other_models_raises(tmp_path: Path) -> None:
    se = ARC.with_name("arc") / "ckpt_bare" / "model.ckpt"
    with pytest.raises(ValueError, match=r"is an SE \(state embedding\) checkpoint, not an ST"):
        read_st_folder(se)
    torch.save({"state_dict": {"conv.weight": torch.ones(2, 2)}}, tmp_path / "cnn.ckpt")
    with pytest.raises(ValueError, match=r"cnn\.ckpt is not an ST .*conv\.weight"):
        read_st_folder(tmp_path / "cnn.ckpt")
    torch.save({"state_dict": {"project_out.0.weight": torch.ones(2, 2)}}, tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match=r"bare\.ckpt holds no hyper_parameters"):
        read_st_folder(tmp_path / "bare.ckpt")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([1, 2], "holds list"),
        ({"TP53": torch.ones(2, 2)}, r"'TP53' is Tensor of shape \(2, 2\)"),
        ({"TP53": "one"}, "'TP53' is str"),
        ({"TP53": torch.ones(2), "MYC": torch.ones(3)}, "vectors of 2, 3 entries"),
        ({}, "holds no names"),
        ({"TP53": torch.ones(5)}, "vectors of width 5, the checkpoint reads 4"),
    ],
)
def test_maps_that_do_not_fit_raises(folder: Path, stored: Any, message: str) -> None:
    torch.save(stored, folder / "pert_onehot_map.pt")
    with pytest.raises(ValueError, match=message):
        read_st_folder(folder)


def test_perturbations_may_be_features_in_numpy_and_batches_codes(folder: Path) -> None:
    features = {np.str_("TP53"): np.arange(4.0), np.str_("non-targeting"): np.zeros(4)}
    torch.save(features, folder / "pert_onehot_map.pt")
    (folder / "batch_onehot_map.torch").unlink()
    (folder / "batch_onehot_map.pkl").write_bytes(pickle.dumps({"a": np.int64(1), "b": 0}))
    model = read_st_folder(folder)
    assert model.perturbations["TP53"].tolist() == [0, 1, 2, 3]
    assert model.batches == {"a": 1, "b": 0}


def test_batches_without_names_are_noted(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ARC / "batch_encoder", tmp_path / "st"))
    (folder / "batch_onehot_map.torch").unlink()
    model = read_st_folder(folder)
    assert model.batches == {}
    assert "names of its 3 batches are not stored" in model.notes[0]


def test_genes_are_matched_by_name_in_any_order() -> None:
    model = read_st_folder(ARC / "trained")
    genes = [f"GENE{i}" for i in range(40)][::-1]
    assert match_genes(model, genes) == model.genes


def test_missing_genes_raises() -> None:
    model = read_st_folder(ARC / "trained")
    with pytest.raises(ValueError, match="12 genes") as raised:
        match_genes(model, [f"gene{i}" for i in range(3)] + model.genes[3:])
    message = str(raised.value)
    for part in (
        "reads 12 genes (HVGs) by name",
        "have 12 genes, among them 9 of those 12",
        "GENE0, GENE1, GENE5",
    ):
        assert part in message
    assert "2 of them differ in upper and lower case only" in message
    assert "under the same names; or reuse='backbone'" in message


def test_other_sizes_raises() -> None:
    hvg, state = read_st_folder(ARC / "trained"), read_st_folder(ARC / "decoder")
    with pytest.raises(
        ValueError, match=r"reads 16 columns of adata.obsm\['X_state'\]; the data have 50 columns of"
    ) as e:
        check_embedding(state, 50, key="X_pca")
    for part in ("adata.obsm['X_pca']", "embed_key='X_state'", "2,058 columns of SE-600M", "reuse='backbone'"):
        assert part in str(e.value)
    with pytest.raises(ValueError, match="the data have 16 genes"):
        match_genes(state, [str(i) for i in range(16)])
    with pytest.raises(
        ValueError, match=r"reads 12 genes \(HVGs\); the data have 12 columns of adata.obsm\['X_state'\]"
    ):
        check_embedding(hvg, 12, key="X_state")
    check_embedding(state, 16, key="X_other")


def test_genes_without_stored_names_are_taken_by_position_and_warns(
    folder: Path, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("scstate_lora"), "propagate", True)
    _change(folder, lambda stored: stored["hyper_parameters"].update(gene_names=None))
    (folder / "var_dims.pkl").unlink()
    model = read_st_folder(folder)
    assert model.input_genes == []
    with caplog.at_level("WARNING", logger="scstate_lora"):
        assert match_genes(model, list("abcdefghijkl")) == list("abcdefghijkl")
    assert "taken by position" in caplog.text
    with pytest.raises(ValueError, match="the data have 3 genes"):
        match_genes(model, list("abc"))


_REPOSITORY = ["README.md", "config.yaml", "checkpoints/final.ckpt", "checkpoints/last.ckpt", "data_module.torch"]
_REPOSITORY += ["pert_onehot_map.pt", "var_dims.pkl", "eval_final.ckpt/results.csv"]
_WANTED = ["checkpoints/final.ckpt", "README.md", "config.yaml", "pert_onehot_map.pt", "var_dims.pkl"]


def test_of_a_repository_only_what_is_needed_is_fetched() -> None:
    fetched = st_files.files_to_fetch
    assert fetched(_REPOSITORY, hub_id="arc/ST") == _WANTED
    below = [f"fewshot/k562/{name}" for name in _REPOSITORY]
    assert fetched(below, hub_id="arc/ST", folder="fewshot/k562") == [f"fewshot/k562/{name}" for name in _WANTED]
    with pytest.raises(FileNotFoundError, match=r"top of arc/ST@v2\..*Give one: 'arc/ST/fewshot/k562@v2'"):
        fetched(below, hub_id="arc/ST@v2")
    with pytest.raises(FileNotFoundError, match=r"the folder 'fewshot' of arc/ST\..*'arc/ST/fewshot/k562'"):
        fetched(below, hub_id="arc/ST", folder="fewshot")
    assert fetched(["README.md"], hub_id="arc/ST") == []


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("arc/ST-Tahoe", ("arc/ST-Tahoe", "")),
        ("arc/ST-Tahoe@v2", ("arc/ST-Tahoe@v2", "")),
        ("arc/ST/zeroshot/hepg2", ("arc/ST", "zeroshot/hepg2")),
        ("arc/ST/zeroshot/hepg2/@v2", ("arc/ST@v2", "zeroshot/hepg2")),
        ("tests/ST/zeroshot", None),  # the folder tests is here
        ("../ST/zeroshot", None),
        ("/arc/ST/zeroshot", None),
        ("arc/ST/checkpoints/final.ckpt", None),
    ],
)
def test_which_paths_are_of_the_hub(path: str, split: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    assert st_files.split_hub_id(path) == split


def test_a_model_on_the_hub_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(hub_id: str, *, choose: Any, offline: Any) -> Path:
        asked.append((hub_id, choose([f"zeroshot/{name}" for name in _REPOSITORY]), offline))
        return tmp_path

    shutil.copytree(ARC / "trained", tmp_path / "zeroshot")
    monkeypatch.setattr(st_checkpoint, "fetch_snapshot", fetch)
    model = read_st_folder("arcinstitute/ST-HVG/zeroshot", offline=True)
    assert asked == [("arcinstitute/ST-HVG", [f"zeroshot/{name}" for name in _WANTED], True)]
    assert model.source == "arcinstitute/ST-HVG/zeroshot"
