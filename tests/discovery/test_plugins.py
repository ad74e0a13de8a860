"""Discovery: what is installed, what is local, what is broken, and who offers what."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

import kdbench
from kdbench.discovery import Registry, discover
from kdbench.errors import PluginError

Install = Callable[..., Path]

OFFER = """
    from kdbench.hookspecs import MethodSpec, hookimpl

    @hookimpl
    def kdbench_methods():
        return [MethodSpec("{name}", "{module}:Loss")]

    class Loss:
        '''A made-up loss.'''

        paper = "Nobody 2020"

        def __init__(self, *, temperature: "Positive" = 4.0):
            pass
"""

LOCAL_LOSS = """
    from kdbench.method import Method

    class Mine(Method):
        name = "mine"
"""


def offered(registry: Registry, distribution: str) -> list[str]:
    return [o.spec.name for o in registry.methods if o.provider.distribution == distribution]


def problems(registry: Registry) -> list[str]:
    return [str(broken) for broken in registry.broken]


# ---- installed plugins


def test_first_party_plugins_are_found_and_whole() -> None:
    registry = discover()
    assert problems(registry) == []
    assert {"none", "kd", "vid", "rkd", "pkt", "ab", "ft", "deit"} <= set(offered(registry, "kdbench"))
    assert registry.dataset("digits").provider.distribution == "kdbench"
    assert registry.model("resnet8").provider.version == kdbench.__version__


def test_an_installed_plugin_is_offered_with_its_distribution_and_version(install: Install) -> None:
    install("kdbench-margin", OFFER.format(name="margin", module="kdbench_margin"), version="0.3")
    registry = discover()
    assert problems(registry) == []
    assert registry.method("margin").to_json() == {
        "name": "margin",
        "paper": "Nobody 2020",
        "summary": "A made-up loss.",
        "distribution": "kdbench-margin",
        "version": "0.3",
        "settings": {"temperature": {"default": 4.0, "type": "float > 0"}},
        "reads": ["logits"],
    }
    assert {"name": "kdbench-margin:plugin", "distribution": "kdbench-margin", "version": "0.3", "problem": None} in (
        registry.to_json()
    )


def test_two_distributions_may_use_one_entry_point_name(install: Install) -> None:
    install("kdbench-one", OFFER.format(name="first", module="kdbench_one"), entry="loss")
    install("kdbench-two", OFFER.format(name="second", module="kdbench_two"), entry="loss")
    registry = discover()
    assert offered(registry, "kdbench-one") == ["first"]
    assert offered(registry, "kdbench-two") == ["second"]


def test_a_distribution_seen_twice_on_the_path_is_loaded_once(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install("kdbench-one", OFFER.format(name="first", module="kdbench_one"))
    (tmp_path / "again").symlink_to(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "again"))
    registry = discover()
    assert problems(registry) == []
    assert offered(registry, "kdbench-one") == ["first"]


def test_entry_point_may_name_an_object(install: Install) -> None:
    source = (
        OFFER.format(name="inside", module="kdbench_one")
        + """
    class _Plugin:
        kdbench_methods = staticmethod(kdbench_methods)

    plugin = _Plugin()
    del kdbench_methods
    """
    )
    install("kdbench-one", source, target="kdbench_one:plugin")
    assert offered(discover(), "kdbench-one") == ["inside"]


# ---- broken plugins


def hook(source: str) -> str:
    """A plugin that begins with this hook."""
    return "from kdbench.hookspecs import hookimpl\n\n@hookimpl" + dedent(source)


BROKEN = {
    "missing import": (
        "import faiss_that_nobody_has",
        "failed to import: No module named 'faiss_that_nobody_has'",
    ),
    "syntax": ("def broken(:", "failed to import: SyntaxError: invalid syntax (kdbench_bad.py, line 1)"),
    "raises while imported": ("raise ValueError('no licence')", "failed to import: ValueError: no licence"),
    "leaves while imported": ("raise SystemExit(3)", "failed to import: SystemExit: 3"),
    "unknown hook": (
        hook("""
        def kdbench_method():
            return []
        """),
        "failed to register: implements 'kdbench_method', an unknown hook; did you mean 'kdbench_methods'?",
    ),
    "surplus argument": (
        hook("""
        def kdbench_suite_started(plan):
            raise AssertionError("half registered")

        @hookimpl
        def kdbench_trial_started(trial, runs):
            pass
        """),
        "failed to register: hook 'kdbench_trial_started' has no argument 'runs'; did you mean 'run'?",
    ),
    "hook without arguments": (
        hook("""
        def kdbench_methods(plan):
            return []
        """),
        "failed to register: hook 'kdbench_methods' has no argument 'plan'; it has none",
    ),
    "hook raises": (
        hook("""
        def kdbench_methods():
            raise KeyError("weights")
        """),
        "failed to register: KeyError: 'weights'",
    ),
    "hook returns nothing": (
        hook("""
        def kdbench_models():
            pass
        """),
        "failed to register: kdbench_models must return a list, got None",
    ),
    "hook returns something else": (
        hook("""
        def kdbench_datasets():
            return [3]
        """),
        "failed to register: offered 3, which is no DatasetSpec",
    ),
    "no method": (
        hook("""
        def kdbench_methods():
            return ["kd"]
        """),
        "failed to register: offered 'kd', which is neither a MethodSpec nor a Method class",
    ),
}


@pytest.mark.parametrize(("source", "problem"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_reported_and_the_others_work(install: Install, source: str, problem: str) -> None:
    install("kdbench-bad", source, version="0.3")
    install("kdbench-good", OFFER.format(name="good", module="kdbench_good"))
    registry = discover()
    assert problems(registry) == [f"kdbench-bad 0.3 {problem}"]
    assert offered(registry, "kdbench-good") == ["good"]
    assert offered(registry, "kdbench-bad") == []
    assert registry.method("kd").provider.distribution == "kdbench"
    # Nothing of it is left to be called later.
    assert registry.manager.hook.kdbench_suite_started(plan=None, run=None) == []
    assert [row for row in registry.to_json() if row["problem"]] == [
        {"name": "kdbench-bad:plugin", "distribution": "kdbench-bad", "version": "0.3", "problem": problem}
    ]


@pytest.mark.parametrize(("source", "problem"), BROKEN.values(), ids=BROKEN)
def test_strict_plugins_make_it_an_error(
    install: Install, monkeypatch: pytest.MonkeyPatch, source: str, problem: str
) -> None:
    install("kdbench-bad", source, version="0.3")
    monkeypatch.setenv("KDBENCH_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError) as caught:
        discover()
    assert str(caught.value) == f"plugin kdbench-bad 0.3 {problem}"


def test_entry_point_to_nowhere(install: Install) -> None:
    install("kdbench-bad", "", target="kdbench_bad:missing")
    assert problems(discover()) == [
        "kdbench-bad 1.0 failed to import: AttributeError: module 'kdbench_bad' has no attribute 'missing'"
    ]


# Python's own reader warns that this will be an error of its own one day.
@pytest.mark.filterwarnings("ignore:Implicit None:DeprecationWarning")
def test_remains_of_an_uninstalled_distribution(install: Install, tmp_path: Path) -> None:
    install("kdbench-gone", "")
    info = tmp_path / "site" / "kdbench_gone-1.0.dist-info"
    (info / "METADATA").unlink()
    (tmp_path / "site" / "kdbench_gone.py").unlink()
    importlib.invalidate_caches()
    assert problems(discover()) == ["kdbench_gone (no version) failed to import: No module named 'kdbench_gone'"]


def test_an_offer_that_cannot_be_imported_does_not_stop_the_list(install: Install) -> None:
    install(
        "kdbench-bad",
        """
        from kdbench.hookspecs import MethodSpec, hookimpl

        @hookimpl
        def kdbench_methods():
            return [MethodSpec("lost", "kdbench_bad:Lost"), MethodSpec("found", "kdbench_bad:Found")]

        class Found:
            pass
        """,
    )
    registry = discover()
    names = [row["name"] for row in registry.rows(registry.methods)]
    assert "found" in names
    assert "kd" in names
    assert "lost" not in names
    assert problems(registry) == [
        "kdbench-bad 1.0 has an invalid offer: 'lost' of kdbench-bad 1.0 failed to import: "
        "kdbench_bad:Lost: module 'kdbench_bad' has no 'Lost'"
    ]


# ---- names


def test_a_name_offered_twice_is_refused_and_the_distribution_picks(install: Install) -> None:
    install("kdbench-mine", OFFER.format(name="kd", module="kdbench_mine"), version="0.2")
    registry = discover()
    with pytest.raises(PluginError) as caught:
        registry.method("kd")
    ours = kdbench.__version__
    assert str(caught.value) == (
        f"method 'kd' is offered by kdbench {ours} and kdbench-mine 0.2; write 'kdbench:kd' or 'kdbench-mine:kd'"
    )
    assert registry.method("kdbench-mine:kd").provider.distribution == "kdbench-mine"
    assert registry.method("kdbench:kd").spec.target == "kdbench_methods.kd:KD"
    assert registry.method("rkd").spec.name == "rkd"


def test_a_name_offered_twice_by_one_distribution(install: Install) -> None:
    install(
        "kdbench-mine",
        """
        from kdbench.hookspecs import MethodSpec, hookimpl

        @hookimpl
        def kdbench_methods():
            return [MethodSpec("twin", "a:B"), MethodSpec("twin", "a:C")]
        """,
    )
    with pytest.raises(PluginError) as caught:
        discover().method("twin")
    assert str(caught.value) == "method 'twin' is offered more than once by kdbench-mine 1.0; rename one"


def test_unknown_names_come_with_a_suggestion_and_the_broken_plugin(install: Install) -> None:
    install("kdbench-crdd", "import faiss_that_nobody_has", version="0.3")
    registry = discover()
    reason = " (kdbench-crdd 0.3 failed to import: No module named 'faiss_that_nobody_has')"
    for find, name, message in (
        (registry.method, "vidd", "method 'vidd' is not registered; did you mean 'vid'?"),
        (registry.model, "MobilNetV2", "model 'MobilNetV2' is not registered; did you mean 'MobileNetV2'?"),
        (registry.dataset, "digit", "data set 'digit' is not registered; did you mean 'digits'?"),
    ):
        with pytest.raises(PluginError) as caught:
            find(name)
        assert str(caught.value) == message + reason


def test_unknown_name_like_no_other_lists_what_is_known() -> None:
    with pytest.raises(PluginError) as caught:
        discover().dataset("zzzz")
    known = "cifar10, cifar100, digits, image_folder, imagenet, tiny_imagenet"
    assert str(caught.value) == (
        f"data set 'zzzz' is not registered; known: {known}; load local files with -p, or with plugins in the suite"
    )


def test_library_models_need_no_registration() -> None:
    registry = discover()
    offer = registry.model("timm:resnet18")
    assert (offer.spec.target, offer.spec.presets) == ("kdbench.models.timm:build", {"name": "resnet18"})
    assert registry.model("torchvision:vgg11").spec.target == "kdbench.models.torchvision:build"
    with pytest.raises(PluginError, match=r"^model 'timm:' is not registered"):
        registry.model("timm:")


# ---- local files


def test_a_local_file_offers_its_method_classes(write: Callable[[str, str], Path]) -> None:
    path = write(
        "my_loss.py",
        """
        from kdbench.method import Method, Positive

        class Margin(Method):
            '''Widens margins.'''

            name = "margin"
            paper = "Me 2025"

            def __init__(self, *, width: Positive = 1.0) -> None:
                super().__init__()

        class Unnamed(Method):
            pass
        """,
    )
    registry = discover([path])
    assert offered(registry, "my_loss.py") == ["margin", "unnamed"]
    offer = registry.method("margin")
    assert offer.load().__name__ == "Margin"
    assert offer.to_json() == {
        "name": "margin",
        "paper": "Me 2025",
        "summary": "Widens margins.",
        "distribution": "my_loss.py",
        "version": "local",
        "settings": {"width": {"default": 1.0, "type": "float > 0"}},
        "reads": ["logits"],
    }


@pytest.mark.parametrize(
    "statement",
    ["import scale_of_mine", "def late():\n    import scale_of_mine", "from scale_of_mine import SCALE"],
    ids=["at once", "late", "a name"],
)
def test_local_files_do_not_share_helpers_of_one_name(write: Callable[[str, str], Path], statement: str) -> None:
    files = []
    for folder in ("first", "second"):
        write(f"{folder}/scale_of_mine.py", f"SCALE = '{folder}'")
        source = f"from kdbench.method import Method\n{statement}\nclass Loss(Method):\n    name = '{folder}'"
        files.append(write(f"{folder}/loss.py", source))
    assert offered(discover(files[:1]), "loss.py") == ["first"]
    with pytest.raises(PluginError) as error:
        discover(files)
    assert "imports 'scale_of_mine', which would load" in str(error.value)
    assert f"{files[0].parent / 'scale_of_mine.py'} of another local plugin; rename one" in str(error.value)


def test_a_local_file_may_bear_the_name_of_another_ones_helper(write: Callable[[str, str], Path]) -> None:
    write("first/scale_of_mine.py", "SCALE = 1")
    first = write("first/loss.py", "import scale_of_mine\n" + dedent(LOCAL_LOSS))
    second = write("second/scale_of_mine.py", LOCAL_LOSS.replace("mine", "other"))
    registry = discover([first, second])
    assert (offered(registry, "loss.py"), offered(registry, "scale_of_mine.py")) == (["mine"], ["other"])


def test_taps_that_depend_on_settings_are_not_guessed(install: Install) -> None:
    install(
        "taps",
        """
        from kdbench.hookspecs import hookimpl
        from kdbench.method import Method

        class Taps(Method):
            name = "taps"

            @property
            def reads(self):
                return frozenset({"embedding"})

        @hookimpl
        def kdbench_methods():
            from kdbench.hookspecs import MethodSpec
            return [Taps, MethodSpec("taps2", f"{__name__}:Taps")]
        """,
    )
    registry = discover()
    assert [registry.method(name).to_json()["reads"] for name in ("taps", "taps2")] == [None, None]


@pytest.mark.parametrize(
    ("decorator", "problem"),
    [
        ("hookimpl", "hook 'kdbench_trial_started' contains a yield and would do nothing when called; remove it"),
        ("hookimpl(wrapper=True)", "hook 'kdbench_trial_started' is a wrapper, which kdbench does not call"),
    ],
)
def test_hooks_that_would_never_run_are_refused(install: Install, decorator: str, problem: str) -> None:
    install(
        "wraps",
        f"""
        from kdbench.hookspecs import hookimpl

        @{decorator}
        def kdbench_trial_started(trial):
            yield
        """,
    )
    [broken] = discover().broken
    assert problem in broken.problem


def test_a_local_file_with_hooks_offers_what_they_say(write: Callable[[str, str], Path]) -> None:
    path = write(
        "mine.py",
        """
        from kdbench.hookspecs import hookimpl
        from kdbench.method import Method

        class Base(Method):
            pass

        class Good(Base):
            name = "good"

        @hookimpl
        def kdbench_methods():
            return [Good]
        """,
    )
    assert offered(discover([path]), "mine.py") == ["good"]


def test_a_local_file_named_twice_is_loaded_once(write: Callable[[str, str], Path]) -> None:
    path = write("mine.py", LOCAL_LOSS)
    registry = discover([path, path.parent / "." / "mine.py"])
    assert offered(registry, "mine.py") == ["mine"]


def test_local_and_installed_under_one_name(write: Callable[[str, str], Path], install: Install) -> None:
    install("kdbench-mine", OFFER.format(name="mine", module="kdbench_mine"), version="0.2")
    registry = discover([write("loss.py", LOCAL_LOSS)])
    with pytest.raises(PluginError) as caught:
        registry.method("mine")
    assert str(caught.value) == (
        "method 'mine' is offered by kdbench-mine 0.2 and loss.py; write 'kdbench-mine:mine' or 'loss.py:mine'"
    )
    assert registry.method("loss.py:mine").load().__name__ == "Mine"


def test_a_local_file_may_import_a_file_of_its_folder(write: Callable[[str, str], Path]) -> None:
    write("local_helper_of_mine.py", "FACTOR = 3.0")
    path = write(
        "mine.py",
        """
        from local_helper_of_mine import FACTOR
        from kdbench.method import Method

        class Mine(Method):
            factor = FACTOR
        """,
    )
    assert discover([path]).method("mine").load().factor == 3.0


def test_nok_local_files(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    cases = {
        tmp_path / "none.py": f"plugin file {tmp_path / 'none.py'}: not found",
        write("notes.txt", "hello"): "plugin notes.txt failed to import: is not a Python file",
        write("import_error.py", "import faiss_that_nobody_has"): (
            "plugin import_error.py failed to import: No module named 'faiss_that_nobody_has'"
        ),
        write("raises.py", "1 / 0"): ("plugin raises.py failed to import: ZeroDivisionError: division by zero"),
    }
    for path, message in cases.items():
        before = set(sys.modules)
        with pytest.raises(PluginError) as caught:
            discover([path])
        assert str(caught.value) == message
        assert set(sys.modules) == before


def test_local_files_with_the_same_name_are_distinguished(write: Callable[[str, str], Path]) -> None:
    files = [write(f"{folder}/loss.py", LOCAL_LOSS.replace("mine", folder)) for folder in ("first", "second")]
    registry = discover(files)
    assert [name for name, provider in registry.plugins if provider.version == "local"] == ["loss.py", str(files[1])]


def test_a_local_target_is_the_file_itself(write: Callable[[str, str], Path]) -> None:
    """Also where an installed module, or another local file, has its name."""
    source = """
        from kdbench.hookspecs import DatasetSpec, MethodSpec, ModelSpec, hookimpl

        @hookimpl
        def kdbench_methods():
            return [MethodSpec("method-{folder}", "json:Thing")]

        @hookimpl
        def kdbench_models():
            return [ModelSpec("model-{folder}", "json:Thing")]

        @hookimpl
        def kdbench_datasets():
            return [DatasetSpec("data-{folder}", "json:Thing")]

        class Thing:
            '''Of {folder}.'''

            folder = "{folder}"
        """
    registry = discover([write(f"{folder}/json.py", source.format(folder=folder)) for folder in ("first", "second")])
    for folder in ("first", "second"):
        for offer in (
            registry.method(f"method-{folder}"),
            registry.model(f"model-{folder}"),
            registry.dataset(f"data-{folder}"),
        ):
            assert offer.load().folder == folder
            assert offer.declared.summary == f"Of {folder}."
            assert folder.encode() in offer.source.files["json.py"]


def test_a_plugin_outside_a_list_is_refused() -> None:
    with pytest.raises(PluginError, match=r"^plugins: must be a list, got 'my_loss\.py'$"):
        discover("my_loss.py")
