"""Slurm as a setting: what a job is given."""

import dataclasses

import pytest
from composed import compose

from harness.config.build import settings_of
from harness.errors import ConfigError
from harness.slurm.settings import DEFERRED_MINUTES, Slurm


def slurm(*overrides: str) -> Slurm:
    (composition,) = compose(["cluster=slurm", *overrides])
    cluster = settings_of(composition).cluster
    assert isinstance(cluster, Slurm)
    return cluster


def test_line_is_given_the_sum_of_times_and_the_most_of_everything_else():
    site = slurm("cluster.resources.finetune.mem_gb=8.5", "cluster.resources.grade.cpus=6")

    found = site.parameters([["finetune", "generate", "grade"]], 1)

    assert (found["time"], found["cpus_per_task"], found["mem"]) == (100, 6, "8704MB")


def test_packed_job_has_time_for_all_its_lines():
    assert slurm().parameters([["finetune"], ["finetune"]], 2)["time"] == 120


def test_processes_multiply_cores():
    site = slurm("cluster.resources.finetune.processes=4", "cluster.resources.finetune.gpus=4")

    found = site.parameters([["finetune"]], 1)

    assert (found["cpus_per_task"], found["gpus_per_node"], found["ntasks_per_node"]) == (8, 4, 1)


def test_cores_are_asked_for_again_where_the_job_starts_its_process():
    single, shared = (
        slurm(f"cluster.resources.finetune={{minutes: 60, nodes: {nodes}, cpus: 3}}").parameters([["finetune"]], 1)
        for nodes in (1, 2)
    )

    assert single["srun_args"] == ["--cpus-per-task=3"]
    assert shared["srun_args"] == ["--cpus-per-task=3", "--ntasks=1", "--nodes=1", "--overlap"]


def test_kind_without_resources_of_its_own_is_given_the_default():
    site = slurm("cluster.resources.default.minutes=7", "~cluster.resources.repair")

    assert site.parameters([["repair"]], 1)["time"] == 7
    assert site.parameters([["finetune"]], 1)["time"] == 60


def test_site_file_that_names_every_kind_needs_no_default():
    site = slurm("~cluster.resources.default")

    assert site.parameters([["grade"]], 1)["time"] == 10


def test_what_is_not_set_is_left_to_the_site():
    site = slurm(*(f"cluster.resources.{kind}.mem_gb=null" for kind in ("finetune",)))

    found = site.parameters([["finetune"]], 1)

    assert not {"mem", "partition", "account", "qos", "constraint", "gpus_per_node", "setup"} & found.keys()


@pytest.mark.slow
def test_account_that_looks_like_a_number_is_a_text_in_quotes():
    with pytest.raises(ConfigError, match=r"`cluster.account`: .*12345"):
        slurm("cluster.account=12345")

    assert slurm("cluster.account='0012'").parameters([["align"]], 1)["account"] == "0012"


def test_extra_parameters_reach_sbatch():
    site = slurm("cluster.sbatch=[exclusive,'mail-type=FAIL']", "cluster.qos=high", "cluster.setup=[module load cuda]")

    found = site.parameters([["align"]], 1)

    assert found["additional_parameters"] == {"exclusive": True, "mail-type": "FAIL"}
    assert (found["qos"], found["setup"]) == ("high", ["module load cuda"])


def test_continuation_is_given_minutes_of_its_own():
    assert slurm().parameters([[]], 1)["time"] == DEFERRED_MINUTES


def test_processes_of_a_job_use_the_most_threads_that_one_of_its_stages_is_given():
    assert slurm().cpus([["finetune", "grade"]]) == 2


def test_job_has_a_gpu_if_one_of_its_stages_does():
    site = slurm("cluster.resources.generate.gpus=1")

    assert site.device([["finetune", "generate"]]) == "cuda"
    assert site.device([["finetune", "grade"]]) == "cpu"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("cluster.job_cap=2", "`cluster.job_cap`"),
        ("cluster.array_limit=0", "`cluster.array_limit`"),
        ("cluster.warn_seconds=0", "`cluster.warn_seconds`"),
        ("cluster.poll_seconds=0", "`cluster.poll_seconds`"),
        ("cluster.joins=[tuning]", "`cluster.joins`: `tuning` is not a kind of stage"),
        ("+cluster.resources.tuning.minutes=5", "`cluster.resources`: `tuning` is not a kind of stage"),
        ("cluster.sbatch=['--mem=3']", "'--mem=3' is not an sbatch option"),
        ("cluster.resources.align.minutes=0", "`cluster.resources.align.minutes`"),
        ("cluster.resources.align.mem_gb=-1", "`cluster.resources.align.mem_gb`"),
        ("cluster.on_oom=retry", "`cluster.on_oom`"),
        ("cluster.resources.generate.processes=2", "`cluster.resources.generate.processes`: 2, but such a stage"),
        ("cluster.resources.grade.nodes=2", "`cluster.resources.grade.nodes`: 2, but such a stage"),
        (
            "cluster.resources.align={minutes: 60, processes: 4, gpus: 2}",
            "`cluster.resources.align.processes`: 4 cannot share 2",
        ),
        ("cluster.warn_seconds=600", "`cluster.warn_seconds`: 600 is not less than the time limit of"),
    ],
)
def test_value_out_of_range_is_named(override, words):
    with pytest.raises(ConfigError) as caught:
        slurm(override)

    assert words in str(caught.value)


def test_waiting_for_a_dry_run_is_refused():
    with pytest.raises(ConfigError, match="nothing to wait for"):
        slurm("cluster.wait=true", "cluster.dry_run=true")


def test_gpu_site_gives_training_a_gpu_and_the_mixture_none():
    (composition,) = compose(["cluster=slurm_gpu"])
    cluster = settings_of(composition).cluster

    assert (cluster.gpus["finetune"], cluster.gpus["poison"]) == (1, 0)
    assert {field.name for field in dataclasses.fields(cluster)} >= {"partition", "job_cap"}
