from __future__ import annotations

import base64
import builtins
import copyreg
import os
import pickle
import subprocess
import sys
import zipfile
import zlib
from collections import Counter, OrderedDict, defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.trainer.states import TrainerFn

from scstate_lora.io.pickle.reader import UnsafePickleError, load_pickle, load_torch

if TYPE_CHECKING:
    from collections.abc import Callable

# pickle.dumps of {"cfg": cfg, "leaf": the list in it}, protocol 2, by OmegaConf 2.3.1, where
# cfg = {"a": 1, "b": {"c": "${a}", "m": "???", "l": [1, 2.5, None, True, "x"], "n": None}, "p": "x"}
OMEGACONF = zlib.decompress(
    base64.b85decode(
        b"c-m#tX;;%g6b9gyf<P!Js0iXNOK<^qaV=O}fvRzf3&u2^b^>YAw@s0Xqwv9V;9om4&0uoumrj=Z++`-"
        b")9SkYm%%oB&r(8kW396)GJAq%GDY;H47H&mb<jZ_}iH_+VWEeVivzG^1RTA1IJG9Xi3oY6WqVa&xc70M`iC)ogfX8+-"
        b"^yp>}kFArk6}D;wy$=6#{ff5Ww=`&GAAcAW*N79gpZ7VIRcyLm==zqWiMljoB@xs@H}Gu_{kyV<b<)B>!R+G8vS(KsILL6w)YPR_"
        b"4}uVbd**;l-w3=7Qnwu2p#(#Y6L=oa$-"
        b"#zJB4xYjh3#C2Y4#6}7&t0(@*M55hN)&|`3>TcD)FOQk5R2zG`q!UYIdF9#z;YiS$r~~xE^IVuA6Co%f?u2Xns&44KacOUuZbNXL"
        b"XX{lurMf?7xAY<}aOLIIGiMs?ojz?cb#Xbd2)0&(Xm>Iz(md=M9WEi*$r$%uZ3t2A|l(QkoYk$|z!zid~&z(0Mj0c4?a7LWI(6Tb"
        b"&f@#h7}@z-"
        b"7vZKxNNDr@XhBc5e=5sc7K}!&QNbO0O|oPgXiB%o{QDrh!}1nxYf3*6}Ty;dWGM6>}23!*Exj_ZaRc(K&%Wh@lS+<n~c<Omev#<|"
        b"EU?LTtXC+favonJ?9$f5a2z85Y%e9y2_Nk|xfk2-onmUB`l`<5{eZ=LTNT;bcI-k3E+5M>s`CSFx<iE>{=|s>_!QuM%A@rG)-"
        b"ErW*#{NFz_>-b&*w!#icXXZVmb(!wxf#zzC6l<{<4%%A@v>NCR^MXfS?O;R0#vSQRX1Gb_H5m97t6j5RzNg^YNa*U`Lpo-"
        b"Xy2$x|^5$g<IlIRpfHAeUb0!7H}-bAfgB+=gcfJEyI4TXjb&E$E4KsRFOcLSU1Jn`0=kyb-"
        b"XYCjmZl=hQ>CAF5&e#Nxk2DYQmXM)z+oS3{v>@s#}zB%(3s0_LA"
    )
)


class _Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def _save_zip(value: Any, path: Path) -> None:
    torch.save(value, path)


def _save_old(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def _save_plain(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


FORMATS = pytest.mark.parametrize(
    ("save", "load"),
    [(_save_zip, load_torch), (_save_zip, partial(load_torch, mmap=False)), (_save_old, load_torch)],
    ids=["zip", "zip copied", "before zip"],
)
ALL_FORMATS = pytest.mark.parametrize(
    ("save", "load"),
    [(_save_zip, load_torch), (_save_old, load_torch), (_save_plain, load_pickle)],
    ids=["zip", "before zip", "plain"],
)


def _file(tmp_path: Path, data: bytes, name: str = "some.pkl") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@FORMATS
def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, save: Callable, load: Callable) -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    x = torch.randn(4, 6)
    tensors = {
        "x": x,
        "view": x.t()[1:, ::2],
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "half": torch.randn(5).bfloat16(),
        "whole": torch.arange(3),
        "flag": torch.tensor([True, False]),
    }
    state = net.state_dict()
    save(
        {"state_dict": state, "tensors": tensors, "parameter": net.weight, "n": 3, "nested": [(1, {"a": None})]},
        path := tmp_path / "a.ckpt",
    )
    found = load(path)
    assert type(found["state_dict"]) is dict
    torch.testing.assert_close(found["state_dict"], dict(state), rtol=0, atol=0)
    torch.testing.assert_close(found["tensors"], tensors, rtol=0, atol=0)
    assert found["tensors"]["view"].stride() == tensors["view"].stride()
    assert found["tensors"]["view"].untyped_storage().data_ptr() == found["tensors"]["x"].data_ptr()  # still shared
    assert type(found["parameter"]) is torch.Tensor
    assert not found["parameter"].requires_grad
    torch.testing.assert_close(found["parameter"], net.weight.detach(), rtol=0, atol=0)
    assert found["n"] == 3
    assert found["nested"] == [(1, {"a": None})]


@FORMATS
def test_agrees_with_torch(tmp_path: Path, save: Callable, load: Callable) -> None:
    torch.manual_seed(0)
    values = {str(dtype): torch.randn(7, 3).to(dtype) for dtype in (torch.float16, torch.int8, torch.complex64)}
    save(values, path := tmp_path / "a.pt")
    torch.testing.assert_close(load(path), torch.load(path, weights_only=True), rtol=0, atol=0)


@FORMATS
def test_tensors_saved_on_a_gpu_lie_on_the_cpu(
    tmp_path: Path, save: Callable, load: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.serialization.location_tag", lambda _storage: "cuda:0")
    save({"a": torch.arange(5)}, path := tmp_path / "a.pt")
    assert b"cuda:0" in path.read_bytes()
    found = load(path)["a"]
    assert found.device.type == "cpu"
    assert found.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
def test_tensors_stay_in_the_file(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000), "b": torch.ones(50_000)}, path := tmp_path / "a.ckpt")

    def mapped_from(tensor: torch.Tensor) -> str:
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, stop = (int(text, 16) for text in line.split()[0].split("-"))
            if start <= tensor.data_ptr() < stop:
                return line
        return ""

    found = load_torch(path)
    assert all(mapped_from(tensor).endswith(str(path)) for tensor in found.values())
    found["b"][0] = 7  # in memory only
    assert load_torch(path)["b"][0] == 1
    assert not mapped_from(load_torch(path, mmap=False)["b"]).endswith(str(path))


def test_omegaconf_becomes_plain(tmp_path: Path) -> None:
    path = _file(tmp_path, OMEGACONF)
    expected = {"a": 1, "b": {"c": "${a}", "m": "???", "l": [1, 2.5, None, True, "x"], "n": None}, "p": "x"}
    found = load_pickle(path)
    assert found == {"cfg": expected, "leaf": expected["b"]["l"]}
    assert type(found["cfg"]) is dict
    assert type(found["leaf"]) is list
    assert found["cfg"]["b"]["l"] is found["leaf"]  # shared where they were


@ALL_FORMATS
def test_lightning_becomes_plain(tmp_path: Path, save: Callable, load: Callable) -> None:
    value = {"h": AttributeDict(a=1, b=AttributeDict(c=[2])), "type": AttributeDict, "enum": TrainerFn.FITTING}
    save({**value, "empty": AttributeDict()}, path := tmp_path / "a")
    found = load(path)
    assert found == {
        "h": {"a": 1, "b": {"c": [2]}},
        "type": "lightning.fabric.utilities.data.AttributeDict",
        "enum": "fit",
        "empty": {},
    }
    assert type(found["h"]) is dict
    assert type(found["enum"]) is str


@ALL_FORMATS
def test_plain_values(tmp_path: Path, save: Callable, load: Callable) -> None:
    values = {
        "path": Path("/a/b"),
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda:1"),
        "dtype": torch.float16,
        "ordered": OrderedDict(a=1),
        "default": defaultdict(list, a=[1]),
        "counter": Counter("aab"),
        "sets": ({1, 2}, frozenset({3})),
        "bytes": (b"\x00\xff", b"", bytearray(b"ab")),
        "complex": 1 + 2j,
        "types": (int, str, dict),
    }
    save(values, path := tmp_path / "a")
    found = load(path)
    assert found == {
        **values,
        "path": "/a/b",
        "size": (2, 3),
        "device": "cuda:1",
        "types": ("builtins.int", "builtins.str", "builtins.dict"),
    }
    assert all(type(found[key]) is dict for key in ("ordered", "default", "counter"))
    assert type(found["size"]) is tuple


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy(tmp_path: Path, protocol: int) -> None:
    values = {
        "matrix": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big": np.array([1.5, 2.0], dtype=">f4"),
        "text": np.array([["aa", "b"], ["", "é"]]),
        "bytes": np.array([b"a", b"bc"]),
        "objects": np.array([["a", None], [1, np.float32(2)]], dtype=object),
        "empty": np.empty((0, 4)),
        "none": np.array([], dtype=str),
    }
    scalars = {np.str_("gene"): np.float32(1.5), "": np.str_(""), "i": np.int64(3), "b": np.bool_(True)}
    path = _file(tmp_path, pickle.dumps((values, scalars, np.dtype("<f8")), protocol=protocol))
    found, found_scalars, dtype = load_pickle(path)
    assert dtype == np.dtype("<f8")
    assert found_scalars == scalars
    assert [type(value) for value in found_scalars.values()] == [type(value) for value in scalars.values()]
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype, name
        assert found[name].flags.f_contiguous == value.flags.f_contiguous, name
        assert found[name].flags.writeable


def test_names_of_numpy_1_are_known(tmp_path: Path) -> None:
    data = pickle.dumps(np.arange(3), protocol=2)
    assert b"core.multiarray" in data
    path = _file(tmp_path, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(load_pickle(path), np.arange(3))


def test_what_holds_itself(tmp_path: Path) -> None:
    value: dict[str, Any] = {"list": []}
    value["list"].append(value)
    found = load_pickle(_file(tmp_path, pickle.dumps(value)))
    assert found["list"][0] is found


@ALL_FORMATS
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.system.__module__}.system"),
        (subprocess.check_output, "(subprocess|commands).check_output"),  # protocol 2 writes names of Python 2
        (builtins.eval, "builtins.eval"),
        (builtins.getattr, "builtins.getattr"),
        (torch.load, "torch.serialization.load"),
        (pickle.loads, "_?c?[pP]ickle.loads"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_code_is_not_run_raises(
    tmp_path: Path, save: Callable, load: Callable, function: Callable[..., Any], name: str
) -> None:
    ran = tmp_path / "ran"
    argument = f"open({str(ran)!r}, 'w')" if function is builtins.eval else f"touch {ran}"
    weights = {} if save is _save_plain else {"weight": torch.zeros(3)}
    save(
        {"state_dict": weights, "hyper_parameters": {"lr": 1, "x": [_Call(function, argument)]}},
        path := tmp_path / "a.ckpt",
    )
    with pytest.raises(UnsafePickleError, match=rf"a\.ckpt asks for {name}, .* not run.*safetensors") as caught:
        load(path)
    assert isinstance(caught.value, ValueError)
    assert not ran.exists()


def test_the_hostile_files_of_these_tests_do_run_elsewhere(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    ran = tmp_path / "ran"
    pickle.loads(pickle.dumps(_Call(os.system, f"touch {ran}")))
    assert ran.exists()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"(S'touch ran'\nios\nsystem\n.", r"os\.system"),  # INST
        (b"(cos\nsystem\nS'touch ran'\no.", r"os\.system"),  # OBJ
        (b"cbuiltins\ngetattr\n(cos\nlistdir\nS'x'\ntR.", r"builtins\.getattr"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93.", r"__globals__"),
        (b"\x80\x04\x8c\x09omegaconf\x8c\x1eDictConfig.__init__.__module__\x93.", r"__module__"),
        (b"comegaconf.omegaconf\nregister_resolver\n.", r"register_resolver"),
        (b"clightning.Fake.os\nsystem\n.", r"system"),
        (b"comegaconfx\nDictConfig\n.", r"omegaconfx\.DictConfig"),
        (b"cnumpy.random\nGenerator\n.", r"numpy\.random\.Generator"),
        (b"ctorch.storage\n_load_from_bytes\n(C\x01atR.", r"_load_from_bytes"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", r"_codecs\.encode to 'rot13'"),
        (b"cbuiltins\nbytearray\n(I1000000000000\ntR.", r"bytearray of int"),
        (b"cbuiltins\nlist\n(tR.", r"builtins\.list"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(N}X\x01\x00\x00\x00aNstb.", r"a change of torch\._utils"),
        (b"clightning.A\nB\n(I1\nI2\ntR.", r"lightning\.A\.B"),
        (b"cnumpy\ndtype\n(X\x02\x00\x00\x00V8tR.", r"numpy\.dtype\('V8'\)"),
        (b"cnumpy\ndtype\n(X\x02\x00\x00\x00M8tR.", r"numpy\.dtype\('M8'\)"),
        # object fields beside a flag that says there are none: numpy would take our bytes for pointers
        (
            b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8tR(I3\nX\x01\x00\x00\x00<N(X\x01\x00\x00\x00at}I8\nI1\nI0\ntb.",
            "with the state",
        ),
    ],
)
def test_tricks_raise(tmp_path: Path, data: bytes, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickleError, match=match):
        load_pickle(_file(tmp_path, data))
    assert [path.name for path in tmp_path.iterdir()] == ["some.pkl"]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NI0\n(I2\nt(I1\nttR.", "a tensor has no sensible storage"),
        (b"ctorch._utils\n_rebuild_parameter\n(NI01\nNtR.", "a parameter holds no tensor"),
        (b"cnumpy._core.multiarray\nscalar\n(NNtR.", "a numpy scalar has no sensible type or bytes"),
        (
            b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00f8tRC\x03abctR.",
            "type float64 comes with 3 bytes",
        ),
    ],
)
def test_damaged_records_raise(tmp_path: Path, data: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=f"some.pkl is truncated or damaged .*{match}"):
        load_pickle(_file(tmp_path, data))


def test_a_state_that_is_not_a_dict_raises(tmp_path: Path) -> None:
    with pytest.raises(UnsafePickleError, match=r"lightning\.A\.B with a state that is not a dict"):
        load_pickle(_file(tmp_path, b"clightning.A\nB\n)\x81I1\nb."))


def test_a_class_cannot_be_changed_raises(tmp_path: Path) -> None:
    data = b"comegaconf\nDictConfig\n(N}X\x04\x00\x00\x00argsNstb."
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_pickle(_file(tmp_path, data))
    assert load_pickle(_file(tmp_path, OMEGACONF))["cfg"]["a"] == 1


def test_extension_codes_of_the_process_raise(tmp_path: Path) -> None:
    code = 240
    data = b"\x80\x02\x82" + bytes([code]) + b"(X\x09\x00\x00\x00touch rantR."
    copyreg.add_extension("posix", "system", code)
    try:
        pickle.loads(b"\x80\x02\x82" + bytes([code]) + b".")  # Python now keeps the function itself
        with pytest.raises(UnsafePickleError, match=r"posix\.system"):
            load_pickle(_file(tmp_path, data))
    finally:
        copyreg.remove_extension("posix", "system", code)


def test_torchscript_raises(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/constants.pkl", pickle.dumps(()))
    with pytest.raises(ValueError, match=r"a\.pt is a TorchScript archive.*state_dict"):
        load_torch(tmp_path / "a.pt")


def test_another_zip_archive_raises(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(ValueError, match=r"torch\.save did not write"):
        load_torch(tmp_path / "a.pt")


def test_a_compressed_archive_raises(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match=r"b\.pt was compressed"):
        load_torch(tmp_path / "b.pt")


@pytest.mark.parametrize("mode", ["zip", "before zip"])
def test_the_other_byte_order_raises(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    (_save_zip if mode == "zip" else _save_old)({"a": torch.zeros(2)}, path)
    monkeypatch.setattr("scstate_lora.io.pickle.reader.sys.byteorder", "big" if sys.byteorder == "little" else "little")
    with pytest.raises(ValueError, match="another byte order"):
        load_torch(path)


def test_a_conjugated_view_raises(tmp_path: Path) -> None:
    torch.save(torch.tensor([1j]).conj(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="resolve_conj"):
        load_torch(tmp_path / "a.pt")


def test_one_storage_of_two_types_raises(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4), "b": torch.zeros(4, dtype=torch.int32)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x000"))  # storage "1" becomes "0"
    with pytest.raises(ValueError, match="two types or lengths"):
        load_torch(tmp_path / "b.pt")


def test_a_tensor_beyond_its_storage_raises(tmp_path: Path) -> None:
    class Fake:
        def __reduce__(self) -> Any:
            function, args = torch.zeros(4).__reduce_ex__(2)
            return function, (args[0], args[1], (10**9,), *args[3:])

    for save in (_save_zip, _save_old):
        save(Fake(), tmp_path / "a.pt")
        with pytest.raises(ValueError, match="reaches beyond its 16 bytes"):
            load_torch(tmp_path / "a.pt")


@ALL_FORMATS
def test_truncated_files_raise(tmp_path: Path, save: Callable, load: Callable) -> None:
    torch.manual_seed(0)
    weights = np.zeros(50) if save is _save_plain else torch.randn(50)
    save({"a": weights, "b": [1, "x" * 50]}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for n in range(0, len(whole), max(1, len(whole) // 60)):
        with pytest.raises(ValueError, match=r"cut is truncated or damaged.*Download"):
            load(_file(tmp_path, whole[:n], "cut"))


@pytest.mark.parametrize("load", [load_torch, load_pickle])
@pytest.mark.parametrize(
    "data", [b"", b"<!DOCTYPE html>", b"\x00" * 600, b"PK\x03\x04 nothing", b"}" * 300, b"(" * 3000]
)
def test_not_pickles_raise(tmp_path: Path, load: Callable, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"some\.pkl (is truncated or damaged|was written by torch.save)"):
        load(_file(tmp_path, data))


def test_deep_nesting_raises(tmp_path: Path) -> None:
    data = b"]" * 100_000 + b"a" * 99_999 + b"."
    with pytest.raises(ValueError, match=r"damaged.*RecursionError"):
        load_pickle(_file(tmp_path, data))


def test_git_lfs_pointer_raises(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    with pytest.raises(ValueError, match=r"a\.ckpt is a pointer of Git LFS.*git lfs pull"):
        load_torch(_file(tmp_path, pointer, "a.ckpt"))


def test_the_tar_format_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tar format"):
        load_torch(_file(tmp_path, b"\0" * 257 + b"ustar" + b"\0" * 250, "a.pt"))


def test_a_checkpoint_given_as_a_pickle_raises(tmp_path: Path) -> None:
    for save in (_save_zip, _save_old):
        save({"a": 1}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=r"was written by torch\.save"):
            load_pickle(tmp_path / "a.pt")


def test_a_tensor_reference_in_a_plain_pickle_raises(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        path = _file(tmp_path, archive.read("a/data.pkl"))
    with pytest.raises(ValueError, match="tensor data outside"):
        load_pickle(path)


@pytest.mark.parametrize("load", [load_torch, load_pickle])
def test_no_file_raises(tmp_path: Path, load: Callable) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*missing\.pt"):
        load(tmp_path / "missing.pt")
    with pytest.raises(FileNotFoundError, match="is a directory"):
        load(tmp_path)
