"""The parts of lm-eval that `scoring.lm_eval_parts` and the encoder use though no documentation promises them.

Each test names the part that went, if it goes.
"""

import inspect
from pathlib import Path
from typing import Any

import lm_eval.api.task
import lm_eval.defaults
import lm_eval.utils
import pytest
from lm_eval.api import metrics
from lm_eval.api.instance import Instance
from lm_eval.api.utils import maybe_delimit
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evomerge.scoring import lm_eval_parts
from evomerge.scoring.encoder import Encoder
from evomerge.scoring.quiet import quiet

TASKS = Path(__file__).parent / "tasks"


@pytest.fixture(scope="module")
def encoder(scoring_model: Any, scoring_tokenizer: Any) -> Encoder:
    with quiet():
        return Encoder(scoring_model("llama"), scoring_tokenizer)


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=[str(TASKS)], include_defaults=False)


@pytest.fixture(scope="module")
def task(manager: TaskManager) -> Any:
    with quiet():
        return manager.load(["gen_numbers"])["tasks"]["gen_numbers"]


@pytest.mark.parametrize("method", ["loglikelihood", "loglikelihood_rolling"])
def test_log_likelihoods_pass_the_hook_with_their_tokens(method: str, encoder: Encoder) -> None:
    arguments = ("The red cat",) if method == "loglikelihood_rolling" else ("The red", " cat")
    noted = encoder.noted(getattr(encoder, method), Instance(method, {}, arguments, 0, ("made", 0, 1)))
    assert noted, f"HFLM.{method} no longer calls HFLM._loglikelihood_tokens with (strings, context, answer)"
    assert all(isinstance(token, int) for pair in noted for tokens in pair for token in tokens)


@pytest.mark.parametrize(
    "name", ["max_length", "max_gen_toks", "eot_token_id", "tokenizer", "tok_decode", "tok_batch_encode"]
)
def test_the_model_has(name: str, encoder: Encoder) -> None:
    assert hasattr(encoder, name), f"HFLM.{name} has gone"


def test_strings_are_tokenized_through_one_method(encoder: Encoder) -> None:
    assert list(inspect.signature(HFLM.tok_encode).parameters)[1:3] == ["string", "add_special_tokens"], (
        "HFLM.tok_encode takes other arguments"
    )
    assert encoder.tok_batch_encode(["The red cat"])[0].shape[0] == 1, (
        "HFLM.tok_batch_encode returns no (ids, mask)"
    )


def test_generation_keywords_are_read_as_by_lm_eval() -> None:
    options, until, length = lm_eval_parts.generation_options({"until": "\n", "do_sample": False}, 7, "</s>")
    assert until == ["\n", "</s>"], "lm_eval.models.utils.handle_stop_sequences adds no end-of-text token"
    assert length == 7, "lm_eval.models.utils.normalize_gen_kwargs fills in no max_gen_toks"
    assert options["do_sample"] is False, "lm_eval.models.utils.normalize_gen_kwargs drops do_sample"


def test_generated_text_is_cut_at_its_first_stop_string() -> None:
    assert lm_eval_parts.cut_at_stops("one. two! three", ["!", "."]) == "one", (
        "lm_eval.models.utils.postprocess_generated_text cuts otherwise"
    )


def test_a_task_says_how_an_answer_follows_its_prompt(task: Any) -> None:
    assert hasattr(task, "doc_to_prefix"), "ConfigurableTask.doc_to_prefix has gone"
    assert isinstance(task.fewshot_cfg.target_delimiter, str), (
        "ConfigurableTask.fewshot_cfg.target_delimiter has gone"
    )
    assert maybe_delimit("So:", "four").startswith("So:"), "lm_eval.api.utils.maybe_delimit has gone"


def test_a_task_has_filters_that_can_be_applied(task: Any) -> None:
    instance = Instance("generate_until", {}, ("prompt", {}), 0, ("gen_numbers", 0, 1))
    instance.resps = ["four"]
    assert task._filters, "Task._filters has gone or is empty"
    names = lm_eval_parts.apply_filters(task, [instance])
    assert names == list(instance.filtered_resps), "FilterEnsemble.apply fills Instance.filtered_resps no more"
    assert names, "FilterEnsemble.apply fills Instance.filtered_resps no more"


def test_a_manager_knows_tasks_groups_and_their_files(manager: TaskManager) -> None:
    assert lm_eval_parts.is_task(manager, "gen_numbers"), "TaskManager.task_index has no entry.kind TASK"
    assert not lm_eval_parts.is_task(manager, "mc_small"), "TaskManager.task_index has no entry.kind GROUP"
    assert lm_eval_parts.is_local(manager, "mc_small"), "entry.cfg['task'] of a group lists no members"
    written_out = {"group": "inline", "task": ["mc_letters", {"group": "deeper", "task": ["gen_numbers"]}]}
    assert lm_eval_parts.is_local(manager, written_out), "or all of lm-eval's tasks are read for it"
    assert not lm_eval_parts.is_local(manager, {**written_out, "task": ["mc_letters", "arc_easy"]})
    assert lm_eval_parts.is_local(manager, {"task": "mc_letters", "num_fewshot": 2})
    assert not lm_eval_parts.knows(manager, "no_such_task")
    path = lm_eval_parts.yaml_path(manager, "gen_numbers")
    assert path == TASKS / "gen_numbers.yaml", "entry.yaml_path of a task is not its file"


def test_a_group_aggregates_the_scores_of_its_tasks(manager: TaskManager) -> None:
    with quiet():
        group = manager.load(["mc_group"])["groups"]["mc_group"]
        assert lm_eval_parts.task_names(group) == ["mc_letters", "mc_prefixes"], "Group.get_all_tasks has gone"
        scores = {"mc_letters": {"acc,none": 1.0, "acc_norm,none": 1.0}, "mc_prefixes": {"acc,none": 0.0}}
        sizes = {"mc_letters": 12, "mc_prefixes": 4}
        found = lm_eval_parts.aggregated(group, scores, sizes)
    assert found == {"acc,none": 0.75}, "Group.aggregate takes no metrics by task, or weighs by no sample_len"
    assert not lm_eval_parts.ignores_sizes(group), "Group.aggregate_metric_list has no weight_by_size"


def test_a_task_names_its_filters_before_it_is_answered(task: Any) -> None:
    assert lm_eval_parts.filter_names(task) == ["strict", "flexible"], "Task._filters have no names"


def test_a_broken_task_file_raises(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("task: [unclosed")
    with pytest.raises(Exception, match=r"unclosed|expected|parsing"):
        lm_eval_parts.check_yaml(tmp_path / "broken.yaml")


def test_lm_evals_own_tasks_lie_in_one_folder() -> None:
    assert next(lm_eval_parts.TASKS_FOLDER.glob("arc/*.yaml"), None), "lm_eval/tasks/arc/ has no YAML"


def test_prompts_are_built_behind_a_bar_and_by_one_template_environment() -> None:
    assert hasattr(lm_eval.api.task, "tqdm"), "lm_eval.api.task.tqdm has gone"
    assert hasattr(lm_eval.utils, "env"), "lm_eval.utils.env has gone"
    bar, compile_template = lm_eval.api.task.tqdm, lm_eval.utils.env.from_string
    with lm_eval_parts.fast_prompts():
        assert lm_eval.utils.env.from_string("{{ a }}") is lm_eval.utils.env.from_string("{{ a }}")
    assert lm_eval.api.task.tqdm is bar
    assert lm_eval.utils.env.from_string == compile_template


@pytest.mark.parametrize("name", ["bits_per_byte", "mean", "weighted_perplexity"])
def test_an_aggregation_is_a_function_of_lm_evals(name: str) -> None:
    assert hasattr(metrics, name), f"lm_eval.api.metrics.{name} has gone"


@pytest.mark.parametrize("name", ["DEFAULT_OTHER_SEED", "DEFAULT_RANDOM_SEED"])
def test_simple_evaluates_seeds_have_names(name: str) -> None:
    assert hasattr(lm_eval.defaults, name), f"lm_eval.defaults.{name} has gone"
