"""Recipes: every one that is shipped is valid, and every mistake is one line with its place and a remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.errors import RecipeError
from corpora.token_ids import TokenIds
from distill.checks import CHECKS
from distill.config import Recipe
from distill.optim import without_decay
from distill.recipe import load_recipe, read_recipe_tree, recipe_schema, resolved_yaml, validated
from distill.term_checks import CHECKS_OF_TERMS
from distill.yaml_tree import MAX_BYTES, MAX_DEPTH, override, packaged_folder, read_file
from students.registry import ARCHITECTURES, parameter_count

SHIPPED = sorted(
    path.relative_to(packaged_folder()).as_posix()
    for path in packaged_folder().rglob("*.yaml")
    if path.parent.name != "accelerate"  # a launcher's files
)


def written(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def lines_of(path: Path | str, *overrides: str) -> list[str]:
    """The lines of the refusal, without the folder of the file."""
    with pytest.raises(RecipeError) as refused:
        load_recipe(path, overrides)
    return [line.replace(f"{Path(path).parent}/", "") for line in str(refused.value).splitlines()]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_valid_and_says_what_it_is_for(name: str) -> None:
    # base.yaml is only ever extended, so it alone names no folder of its own
    recipe = load_recipe(name, ["run_dir=runs/base"] if name == "base.yaml" else [])
    assert isinstance(recipe, Recipe)
    assert (packaged_folder() / name).read_text().startswith("# ")


@pytest.mark.parametrize("name", ["quickstart", "real_text", "students/elc_bert_small"])
def test_resolved_recipe_reads_back_as_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["seed=7"])
    assert load_recipe(written(tmp_path, resolved_yaml(recipe))) == recipe


def test_published_fragments_stand_for_recipes_of_their_own() -> None:
    teacher = load_recipe("teachers/llama_360m.yaml")
    assert list(teacher.teachers) == ["llama_360m"] and not teacher.students
    assert teacher.tokenizer.vocab_size == 16_000 and teacher.run_dir == "runs/llama_360m"
    assert list(load_recipe("students/baby_llama_58m").students) == ["baby_llama_58m"]


# trainable parameters at the published sizes
PUBLISHED = {
    "teachers/llama_360m": 359_973_888,
    "teachers/gptj_705m": 704_330_368,
    "teachers/gpt2_705m": 704_928_768,
    "teachers/ltg_bert_base": 98_229_760,
    "teachers/elc_bert_base": 98_229_838,
    "teachers/elc_bert_base_base": 98_229_838,
    "teachers/elc_bert_base_normalized": 98_229_838,
    "teachers/elc_bert_base_weighted_output": 98_229_851,
    "teachers/gpt_bert_base": 119_454_532,
    "teachers/lv_bert_base": 100_793_754,
    "teachers/share_bert_base": 80_569_088,
    "teachers/share_bert_large": 93_730_304,
    "students/baby_llama_58m": 58_343_936,
    "students/babyllama2_345m": 345_355_200,
    "students/ltg_bert_small": 23_799_552,
    "students/elc_bert_small": 23_799_630,
    "students/elc_bert_small_base": 23_799_630,
    "students/elc_bert_small_normalized": 23_799_630,
    "students/elc_bert_small_weighted_output": 23_799_643,
    "students/gpt_bert_small": 29_892_164,
    "students/lv_bert_small": 12_589_530,
    "students/lv_bert_medium": 23_229_162,
    "students/share_bert_small": 71_704_832,
}
# of those, what papers count: all but the head that fills masks in
WITHOUT_HEAD = {
    "students/lv_bert_small": 12_525_856,
    "students/lv_bert_medium": 23_149_104,
    "teachers/lv_bert_base": 100_171_104,
    "students/share_bert_small": 4_983_040,
    "teachers/share_bert_base": 13_847_296,
    "teachers/share_bert_large": 27_008_512,
}
FRAGMENTS = [name.removesuffix(".yaml") for name in SHIPPED if "/" in name and not name.endswith("_tiny.yaml")]


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragments_have_the_published_sizes_and_say_so(name: str) -> None:
    recipe = load_recipe(name)
    [run] = [*recipe.teachers.values(), *recipe.students.values()]
    assert list(recipe.teachers or recipe.students) == [name.partition("/")[2]]
    assert bool(recipe.teachers) == name.startswith("teachers/")
    assert run.model is not None and run.train is not None and run.model.vocab_size == recipe.tokenizer.vocab_size
    assert parameter_count(run.model, recipe.tokenizer.vocab_size) == PUBLISHED[name]
    comment = " ".join(line.removeprefix("#") for line in (packaged_folder() / f"{name}.yaml").read_text().splitlines())
    assert f"{PUBLISHED[name]:,} parameters" in comment and "Source: " in comment and "A fragment" in comment
    if name in WITHOUT_HEAD:
        assert f"{WITHOUT_HEAD[name]:,} of them" in comment


@pytest.mark.parametrize("name", FRAGMENTS)
def test_published_optimisers_find_their_weights(name: str) -> None:
    """Patterns of what does not decay match, and mean what the source's do."""
    recipe = load_recipe(name)
    [run] = [*recipe.teachers.values(), *recipe.students.values()]
    assert run.model is not None and run.train is not None
    with torch.device("meta"):
        small = replace(run.model, num_layers=1, layers=run.model.layers and "DS")
        architecture = ARCHITECTURES[small.architecture]
        model = architecture(small, vocab_size=recipe.tokenizer.vocab_size, token_ids=TokenIds())
    exempt = without_decay(model, run.train.no_decay)
    weights = model.network.base_model.named_parameters()
    assert {key for key, weight in weights if (weight in exempt) != (weight.ndim < 2)} == {
        "elc_bert": {"embedding.word_embedding.weight", "embedding.relative_embedding"},
        "ltg_bert": {"embedding.relative_embedding"},
        "gpt_bert": {"layers.0.mlp_average.weights", "output_average.weights"},  # vectors that decay
    }.get(small.architecture, set())


def test_smoke_is_the_quickstart_in_small() -> None:
    quick, smoke = load_recipe("quickstart"), load_recipe("smoke")
    assert smoke.teachers.keys() == quick.teachers.keys()
    for name, student in smoke.students.items():
        assert student.terms == quick.students[name].terms and student.controls == quick.students[name].controls


MISTAKES = """\
extends: quickstart.yaml
corpus:
  words: many
students:
  baby_llama:
    train:
      larning_rate: 3e-4
      lr: fast
      betas: [0.9]
    terms:
      - {loss: cross_entropi}
      - loss: forward_kl
        members: [llama]
cache:
tracking: {wandb: 1}
teacher: {}
"""


def test_all_problems_are_said_at_once_with_file_and_line(tmp_path: Path) -> None:
    assert sorted(lines_of(written(tmp_path, MISTAKES))) == sorted(
        [
            "recipe.yaml:3: corpus.words: expected a whole number, found 'many'",
            "recipe.yaml:7: students.baby_llama.train.larning_rate: unknown key; did you mean 'lr'?",
            "recipe.yaml:8: students.baby_llama.train.lr: expected a number, found 'fast'",
            "recipe.yaml:9: students.baby_llama.train.betas.1: missing; give it",
            "recipe.yaml:11: students.baby_llama.terms.0.loss: expected 'cross_entropy', 'forward_kl', 'reverse_kl', "
            "'jensen_shannon', 'total_variation', 'skew_forward_kl', 'skew_reverse_kl', 'logit_mse', 'feature_mse' or "
            "'feature_cosine', found 'cross_entropi'; did you mean 'cross_entropy'?",
            "recipe.yaml:13: students.baby_llama.terms.1.members: expected a mapping, found a list",
            "recipe.yaml:14: cache: expected a mapping, found null",
            "recipe.yaml:15: tracking.wandb: expected true or false, found 1",
            "recipe.yaml:16: teacher: unknown key; did you mean 'teachers'?",
        ]
    )


@pytest.mark.parametrize(
    ("mistake", "line"),
    [
        ("seed=true", "seed: expected a whole number, found true"),
        ("seed=1.5", "seed: expected a whole number, found 1.5"),
        ("seed='1'", "seed: expected a whole number, found '1'"),
        ("students.elc_bert.train.lr=.nan", "students.elc_bert.train.lr: expected a finite number, found nan"),
        ("students.elc_bert.train.lr=1e999", "students.elc_bert.train.lr: expected a finite number, found inf"),
        ("teachers.elc.model.n_layers=2", "teachers.elc.model.n_layers: unknown key; did you mean 'num_layers'?"),
        ("cache.zzz=2", "cache.zzz: unknown key; expected one of codec, dtype"),
        (
            "teachers.elc.train.views={cuasal: 1}",
            "teachers.elc.train.views.cuasal: unknown key; did you mean 'causal'?",
        ),
        ("cache.dtype=int4", "cache.dtype: expected 'bf16', 'int8' or 'fp32', found 'int4'"),
        ("students.x.terms=[]", "students.x.model: missing; give it"),
        ("run_dir=null", "run_dir: expected text, found null"),
    ],
)
def test_mistyped_and_unknown_keys(mistake: str, line: str) -> None:
    assert any(found.startswith(f"command line: {line}") for found in lines_of("quickstart", mistake))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["students.elc_bert.terms.1.members.lama=1"],
            "no such teacher, there are: llama, gptj, elc; did you mean 'llama'?",
        ),
        (["students.elc_bert.terms.2.members.elc=1"], "one term (llama is causal, gptj is causal, elc is masked)"),
        (["students.elc_bert.terms.0.members={elc: 1}"], "cross_entropy listens to no teacher"),
        (["students.elc_bert.terms.1.members=null"], "expected a mapping, found null"),
        (["students.elc_bert.terms=[{loss: forward_kl}]"], "forward_kl has no members"),
        (["students.elc_bert.terms.1.members.elc=0"], "all weights are 0"),
        (["students.elc_bert.terms=[]"], "no term with a positive weight for masked rows"),
        (["students.elc_bert.terms.0.weight=-1"], "terms.0.weight: expected at least 0, found -1"),
        (["students.elc_bert.terms.0.view=causal"], "but the student trains on masked"),
        (["students.elc_bert.terms.1.weights=fitted"], "fitted weights of a mixture of 1"),
        (
            ["students.elc_bert.terms.2.weights=fitted", "students.elc_bert.terms.2.pool=power"],
            "fitted weights of a power of 2, expected a mixture or product of 2 or more",
        ),
        (
            ["students.elc_bert.terms.2.weights=fitted", "students.elc_bert.terms.2.members.gptj=0"],
            "fitted weights of a product of 1",
        ),
        (["students.elc_bert.terms.2.across_views=true"], "the members do not read different views"),
        (["students.elc_bert.train.dynamic_masks=true"], "have answers for the cache's masks alone"),
        (["students.elc_bert.train.views={causal: 1}"], "view or views: view and views are given"),
        (["students.elc_bert.train.view=null"], "view or views: none is given"),
        (["students.elc_bert.train.view=null", "students.elc_bert.train.views={masked: 0}"], "all shares are 0"),
        (["students.elc_bert.train.epochs=1"], "words or minutes: steps and epochs are given"),
        (["students.elc_bert.train.steps=null"], "words or minutes: none is given"),
        (["students.elc_bert.train.patience=3"], "patience need looks at the tune stream, and there are none"),
        (["students.elc_bert.train.keep=best"], "keep need looks at the tune stream"),
        (["students.elc_bert.train.phases=[{share: 0}]"], "phases.0.share: expected more than 0, found 0"),
        (["students.elc_bert.train.phases=[{share: 1, seq_len: 129}]"], "129 tokens, but the model has max_positions"),
        (["students.elc_bert.train.phases=[{share: 1, views: {masked: 0}}]"], "phases.0.views: all shares are 0"),
        (["students.elc_bert.train.warmup_steps=9999"], "students.elc_bert.train.lr_schedule"),
        (
            ["students.elc_bert.train.steps=null", "students.elc_bert.train.minutes=1"],
            "1 minutes, but the controls have the student's number of steps",
        ),
        (["teachers.llama.adapters={rank: 4}"], "adapters to weights that are drawn anew learn little"),
        (
            ["teachers.llama.start=runs/x", "teachers.llama.adapters={targets: [nothing]}"],
            "teachers.llama.adapters.targets",
        ),
        (["teachers.llama.terms=[{loss: cross_entropy, beta: 0.2}]"], "only jensen_shannon reads it"),
        (["teachers.llama.terms=[{loss: forward_kl, members: {gptj: 1}}]"], "a teacher learns from text alone"),
        (["students.elc_bert.train.batch_size=0"], "batch_size: expected at least 1, found 0"),
        (["students.elc_bert.train.betas=[0.9, 1]"], "betas.1: expected at least 0 and less than 1, found 1"),
        (["students.elc_bert.train.seq_len=129"], "129 tokens, but the model has max_positions 128"),
        (["students.elc_bert.model.hidden_size=66"], "model.hidden_size: 66"),
        (["students.baby_llama.model.dropout=0.1"], "students.baby_llama.model.dropout: found 0.1"),
        (
            ["students.elc_bert.model={architecture: share_bert, num_layers: 2, hidden_size: 512, num_heads: 8}"],
            "students.elc_bert.model.vocab_size: from 2048 rows the shared matrices of hidden_size 512",
        ),
        (["students.baby_llama.model.vocab_size=512"], "512, but tokenizer.vocab_size is 2048"),
        (["cache.window=256"], "256 tokens, but teacher llama has max_positions 128"),
        (["cache.num_folds=1"], "one fold masks every token at once"),
        (
            ["teachers.elc.train.phases=[{share: 1, num_folds: 5}]", "teachers.elc.train.dynamic_masks=false"],
            "teachers.elc.train.phases.0.num_folds: 5, but these are the cache's masks, of 3 folds; set dynamic_masks",
        ),
        (
            ["teachers.llama.train.phases=[{share: 1, num_folds: 5}]"],
            "teachers.llama.train.phases.0.num_folds: no row of this phase is masked; leave it out",
        ),
        (["teachers.elc.train.phases=[{share: 1, num_folds: 1}]"], "found 1"),
        (["teachers.llama.path=runs/x"], "both a path and a model"),
        (["teachers.x={}"], "expected model and train, or the path"),
        (["teachers.elc.view=causal"], "listened to as causal, but trained on masked"),
        (["teachers.elc.train.view=null", "teachers.elc.train.views={masked: 1, causal: 1}"], "say with `view`"),
        (["teachers={a/b: {path: y}}"], "found the name 'a/b'"),
        (["corpus.split.tune=0.6", "corpus.split.test=0.5"], "tune and test take 1.1 of the words"),
        (["corpus.split.tune=0"], "split.tune: expected more than 0 and less than 1, found 0"),
        (["corpus.root=here"], "set corpus.source=folder"),
        (["tokenizer.vocab_size=100"], "vocab_size: expected at least 260, found 100"),
        (
            ["students.elc_bert.terms.1.loss=feature_mse", "students.elc_bert.terms.1.pool=product"],
            "pool: product, but",
        ),
    ],
)
def test_what_types_cannot_say(overrides: list[str], line: str) -> None:
    found = lines_of("quickstart", *overrides)
    assert any(line in one for one in found), found


def test_every_check_accepts_the_quickstart_and_says_what_it_checks() -> None:
    recipe = load_recipe("quickstart")
    for check in CHECKS + CHECKS_OF_TERMS:
        assert not list(check(recipe)) and check.__doc__


def test_products_are_fitted_and_views_are_pooled_at_a_word() -> None:
    term = "students.elc_bert.terms.2"
    fitted = load_recipe("quickstart", [f"{term}.weights=fitted"])
    assert fitted.students["elc_bert"].terms[2].pool == "product"
    across = load_recipe("quickstart", [f"{term}.members.elc=1", f"{term}.across_views=true"])
    assert len(across.students["elc_bert"].terms[2].members) == 3


def test_a_hybrid_student_is_accepted() -> None:
    views = ["students.elc_bert.train.view=null", "students.elc_bert.train.views={causal: 1, masked: 15}"]
    recipe = load_recipe("quickstart", [*views, "students.elc_bert.terms.1.view=masked"])
    assert recipe.students["elc_bert"].train.views == {"causal": 1.0, "masked": 15.0}


def test_overrides_reach_numbers_lists_and_missing_mappings() -> None:
    recipe = load_recipe(
        "quickstart",
        [
            "students.baby_llama.terms.1.members.gptj=2",
            "students.baby_llama.train.lr=3e-4",
            "benchmarks.blimp.root=/data/blimp",
            "corpus.words=1e5",
            "corpus.budget.talk=1_000",
            "teachers.gptj=null",
            "teachers.gptj={path: runs/old, view: causal}",
        ],
    )
    student = recipe.students["baby_llama"]
    assert student.terms[1].members == {"llama": 1.0, "gptj": 2.0} and student.train.lr == 3e-4
    assert recipe.benchmarks.blimp is not None and recipe.benchmarks.blimp.root == "/data/blimp"
    assert recipe.benchmarks.minimal_pairs is not None
    assert recipe.corpus.words == 100_000 and recipe.corpus.budget == {"talk": 1000}
    assert recipe.teachers["gptj"].path == "runs/old" and recipe.teachers["gptj"].model is None


@pytest.mark.parametrize(
    ("mistake", "line"),
    [
        ("seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("seed=[", "not a recipe in YAML"),
        ("seed.x=3", "nothing can stand below 1"),
        ("students.elc_bert.terms.3.weight=1", "'3' in a list of 3"),
        ("students.elc_bert.terms.-1.weight=1", "'-1' in a list of 3"),
        ("seed=&a 3", "anchors are refused"),
        ("seed=!!python/object/apply:os.getcwd []", "tag"),
        ("seed=!!timestamp x", "expected a whole number"),
        ('run_dir="\\0"', "NUL"),
        ('run_dir="\\ud800"', "cannot be read"),
    ],
)
def test_malformed_overrides(mistake: str, line: str) -> None:
    (found,) = lines_of("quickstart", mistake)
    assert found.startswith("command line: ") and line in found


def test_use_takes_in_a_fragment_and_the_own_keys_win(tmp_path: Path) -> None:
    written(tmp_path, "num_layers: 7\nhidden_size: 64\nnum_heads: 4\narchitecture: llama\n", "shape.yaml")
    path = written(tmp_path, "extends: quickstart.yaml\nteachers: {llama: {model: {use: shape.yaml, num_layers: 3}}}\n")
    model = load_recipe(path).teachers["llama"].model
    assert model is not None and (model.num_layers, model.hidden_size) == (3, 64)
    overridden = load_recipe(path, [f"students.baby_llama.model.use={tmp_path}/shape"])
    assert overridden.students["baby_llama"].model.num_layers == 7


def test_lists_replace_and_null_unsets(tmp_path: Path) -> None:
    text = "extends: quickstart.yaml\nbenchmarks: {minimal_pairs: null}\nstudents: {baby_llama: {controls: []}}\n"
    recipe = load_recipe(written(tmp_path, text))
    assert recipe.benchmarks.minimal_pairs is None and recipe.students["baby_llama"].controls == []


def test_a_problem_names_the_file_that_holds_it(tmp_path: Path) -> None:
    written(tmp_path, "# base\nrun_dir: runs/x\nseed: one\n", "mine.yaml")
    assert lines_of(written(tmp_path, "extends: mine\n")) == ["mine.yaml:3: seed: expected a whole number, found 'one'"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("extends: recipe.yaml\n", "recipe.yaml:1: files take each other in without end (recipe.yaml -> recipe.yaml)"),
        ("run_dir: x\nteachers: {x: {use: recipe.yaml}}\n", "recipe.yaml:2: files take each other in without end"),
        ("extends: nowhere.yaml\n", "recipe.yaml:1: extends: 'nowhere.yaml': no such recipe"),
        ("extends: [base.yaml]\n", "recipe.yaml:1: extends: expected the name of a file, found a list"),
        ("seed: 1\nseed: 2\n", "recipe.yaml:2: not a recipe in YAML: key 'seed' stands here and at recipe.yaml:1"),
        ("a: &x {b: 1}\nc: *x\n", "recipe.yaml:1: not a recipe in YAML: anchors are refused"),
        ("run_dir: !!python/name:os.system x\n", "recipe.yaml:1: not a recipe in YAML: tag"),
        ("run_dir: x\n---\nseed: 2\n", "recipe.yaml:2: not a recipe in YAML"),
        ("run_dir: [1\nseed: 2\n", "recipe.yaml:2: not a recipe in YAML"),
        ("? [a]\n: 1\n", "recipe.yaml:1: not a recipe in YAML: a key must be a word"),
        ("- 1\n", "recipe.yaml:1: expected a mapping of keys, found a list"),
        ("", "recipe.yaml: expected a mapping of keys, found null"),
        ("seed: " + "[" * (MAX_DEPTH + 1), "recipe.yaml:1: not a recipe in YAML: nested deeper than 32"),
        ("#" * (MAX_BYTES + 1), "recipe.yaml: more than 1,048,576 bytes"),
        ("seed: \x01\n", "recipe.yaml: character"),
        (f"seed: {'9' * 5000}\n", "recipe.yaml:1: not a recipe in YAML: '999"),
    ],
)
def test_bad_files_are_refused_in_one_line(text: str, line: str, tmp_path: Path) -> None:
    (found,) = lines_of(written(tmp_path, text))
    assert found.startswith(line)


def test_a_cycle_over_two_files_names_both(tmp_path: Path) -> None:
    written(tmp_path, "extends: recipe.yaml\n", "other.yaml")
    (found,) = lines_of(written(tmp_path, "extends: other.yaml\n"))
    assert "(recipe.yaml -> other.yaml -> recipe.yaml)" in found


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"run_dir: caf\xe9\n")
    assert "not UTF-8 at byte 12" in lines_of(tmp_path / "latin.yaml")[0]
    (found,) = lines_of("quicstart")
    assert "no such recipe" in found and "quickstart.yaml" in found and "teachers/llama_360m.yaml" in found
    assert "no such recipe" in lines_of(str(tmp_path))[0] and "no such recipe" in lines_of("x" * 5000)[0]


def test_a_packaged_recipe_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = load_recipe("configs/quickstart.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("configs/quickstart.yaml") == load_recipe("quickstart") == here


def test_schema_knows_every_field_and_the_keys_that_take_files_in() -> None:
    schema = recipe_schema()
    assert {"run_dir", "students", "extends", "use"} <= schema["properties"].keys()
    assert {"lr", "use"} <= schema["$defs"]["TrainConfig"]["properties"].keys()
    assert not schema["additionalProperties"] and "required" not in schema
    json.dumps(schema)


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    text = "a: 3e-4\nb: 1e6\nc: 1_000\nd: 2.5E+3\ne: '3e-4'\nf: 2020-01-01\ng: -1e-2\nno: no\n1: ~\n"
    values = read_file(written(tmp_path, text)).plain()
    assert values == {
        **{"a": 3e-4, "b": 1_000_000, "c": 1000, "d": 2500.0, "e": "3e-4"},
        **{"f": "2020-01-01", "g": -0.01, "no": False, "1": None},
    }
    assert type(values["b"]) is int and type(values["c"]) is int


KEYS = st.sampled_from(["seed", "students", "terms", "elc_bert", "1", "train", "lr", "use", "model", "cache", "", "é"])
TEXTS = st.one_of(
    st.text(max_size=40),
    st.builds(lambda keys, value: ".".join(keys) + "=" + value, st.lists(KEYS, max_size=5), st.text(max_size=20)),
    st.builds(
        lambda key, value: f"{key}={value}",
        st.sampled_from(
            ["seed", "students.elc_bert.terms", "cache", "corpus.split", "benchmarks.blimp", "teachers.llama.train"]
        ),
        st.sampled_from(
            ["3e-4", "[1, {a: b}]", "{use: base.yaml}", "null", "!!int x", "*a", "&a b", "{{}}", "'", "1e400", "- a"]
        ),
    ),
)
_QUICKSTART = read_recipe_tree(packaged_folder() / "smoke.yaml")


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_any_override_is_read_or_refused_in_lines(text: str) -> None:
    try:
        assert isinstance(validated(override(_QUICKSTART, text)), Recipe)
    except RecipeError as error:
        assert str(error) and all(": " in line for line in str(error).split("\n"))


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=80), st.text("{}[]:,&*!?|>-'\"%@ \n\ta1.#", max_size=60).map(str.encode)))
def test_any_file_is_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(data)
    try:
        assert isinstance(read_file(path).plain(), dict)
    except RecipeError as error:
        assert "\n" not in str(error)


def test_recipes_are_values() -> None:
    recipe = load_recipe("smoke")
    assert replace(recipe, seed=2) != recipe == load_recipe("smoke")
