"""The JobSet manifest, read as Kubernetes reads it, and the commands around it."""

import re
import shlex

import pytest

from sr1_jax.exit_codes import FINAL, ExitCode

yaml = pytest.importorskip("yaml")

LOGGED = "exec python -m sr1_jax.logged --folder="
CONTEXT = ["kubectl", "--context=gke_my-project_us-east5_cluster", "--namespace=default"]
MOUNT_OPTIONS = "implicit-dirs,rename-dir-limit=200000,write:enable-streaming-writes:false"
POOL = ["gcloud", "container", "node-pools"]
CLUSTER = ["--cluster=cluster", "--project=my-project", "--location=us-east5"]


def manifest(cloud, *options, **settings):
    cloud.configure(**settings)
    result = cloud.run("gke.sh render", *options)
    assert result.returncode == 0, result.stderr
    template = (cloud.root / "tpu_scripts/jobset.yaml.template").read_text()
    for name in set(re.findall("@[A-Z_]+@", template)) - {"@NAME@"}:
        assert name not in result.stdout, "a name was not filled in"
    service, jobset = yaml.safe_load_all(result.stdout)
    return service, jobset


def pod(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def as_executed(container):
    """Command and arguments after Kubernetes has replaced $$ by $ (there are no variables)."""
    words = container["command"] + container["args"]
    assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", word) for word in words)
    return [word.replace("$$", "$") for word in words]


def test_a_single_slice(cloud):
    service, jobset = manifest(
        cloud, ACCELERATOR_TYPE="v5litepod-16", MAX_RESTARTS="7", WORKDIR="/shared/runs/a"
    )
    name = {"name": "run", "namespace": "default"}
    assert service["kind"] == "Service" and service["metadata"] == name
    assert service["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"jobset.sigs.k8s.io/jobset-name": "run"},
    }
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"] == name | {
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    }
    assert jobset["spec"]["failurePolicy"] == {
        "maxRestarts": 7,
        "restartStrategy": "BlockingRecreate",
        "rules": [
            {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        ],
    }
    # The pods' names end in the name of the service.
    assert jobset["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "run"}
    [job] = jobset["spec"]["replicatedJobs"]
    assert job["replicas"] == 1
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (4, 4, 0)
    assert spec["podFailurePolicy"]["rules"] == [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": pod(jobset)["containers"][0]["name"],
                "operator": "In",
                "values": sorted(FINAL - {ExitCode.DONE}),
            },
        }
    ]
    assert pod(jobset)["restartPolicy"] == "Never"
    assert pod(jobset)["terminationGracePeriodSeconds"] == 600
    assert pod(jobset)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod(jobset)["tolerations"] == [
        {
            "key": "cloud.google.com/gke-spot",
            "operator": "Equal",
            "value": "true",
            "effect": "NoSchedule",
        }
    ]
    [container] = pod(jobset)["containers"]
    assert container["image"] == "images/sr1_jax:1"
    chips = {"google.com/tpu": 4}
    assert container["resources"] == {"requests": chips, "limits": chips}
    assert [port["containerPort"] for port in container["ports"]] == [8471, 8080, 8482]
    assert as_executed(container) == [
        *("bash", "-c", f'{LOGGED}/shared/runs/a/logs -- python "$@"', "train"),
        *("-m", "sr1_jax.train", "--distributed"),
        *("--config=configs/demo.py", "--workdir=/shared/runs/a"),
    ]
    assert not {"volumes", "serviceAccountName"} & set(pod(jobset))
    assert "volumeMounts" not in container
    assert cloud.calls() == []


@pytest.mark.parametrize(
    "accelerator, nodes, hosts, chips, label, topology",
    [
        ("v4-8", 1, 1, 4, "tpu-v4-podslice", "2x2x1"),
        ("v4-32", 2, 4, 4, "tpu-v4-podslice", "2x2x4"),
        ("v5litepod-4", 1, 1, 4, "tpu-v5-lite-podslice", "2x2"),
        ("v5litepod-8", 1, 1, 8, "tpu-v5-lite-podslice", "2x4"),
        ("v5litepod-8", 2, 2, 4, "tpu-v5-lite-podslice", "2x4"),
        ("v5p-128", 3, 16, 4, "tpu-v5p-slice", "4x4x4"),
        ("v6e-1", 1, 1, 1, "tpu-v6e-slice", "1x1"),
        ("tpu7x-8", 1, 1, 4, "tpu7x", "2x2x1"),
        ("tpu7x-128", 2, 16, 4, "tpu7x", "4x4x4"),
        ("v6e-256", 4, 64, 4, "tpu-v6e-slice", "16x16"),
    ],
)
def test_slices_and_hosts(cloud, accelerator, nodes, hosts, chips, label, topology):
    _, jobset = manifest(
        cloud, ACCELERATOR_TYPE=accelerator, NODES=str(nodes), CAPACITY="on-demand"
    )
    [job] = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (nodes, hosts, hosts)
    assert pod(jobset)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert "tolerations" not in pod(jobset)
    assert pod(jobset)["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


def test_token_bucket_and_account(cloud, tmp_path):
    token = tmp_path / "token"
    token.write_text("hf_secret")
    _, jobset = manifest(
        cloud, HF_TOKEN_FILE=str(token), WORKDIR="gs://my-data/a/b", MOUNT="yes",
        GKE_SERVICE_ACCOUNT="trainer",
    )  # fmt: skip
    assert pod(jobset)["serviceAccountName"] == "trainer"
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {
        "gke-gcsfuse/volumes": "true",
        **{f"gke-gcsfuse/{kind}-limit": "0" for kind in ("cpu", "memory", "ephemeral-storage")},
        "gke-gcsfuse/cpu-request": "2",
        "gke-gcsfuse/memory-request": "4Gi",
        "gke-gcsfuse/ephemeral-storage-request": "50Gi",
    }
    assert pod(jobset)["volumes"] == [
        {
            "name": "bucket",
            "csi": {
                "driver": "gcsfuse.csi.storage.gke.io",
                "volumeAttributes": {"bucketName": "my-data", "mountOptions": MOUNT_OPTIONS},
            },
        },
        {"name": "token", "secret": {"secretName": "run-token"}},
    ]
    [container] = pod(jobset)["containers"]
    assert container["volumeMounts"] == [
        {"name": "bucket", "mountPath": "/mnt/my-data"},
        {"name": "token", "mountPath": "/etc/sr1_jax", "readOnly": True},
    ]
    assert container["args"][-1] == "--workdir=/mnt/my-data/a/b"
    folder = "/mnt/my-data/a/b"
    assert as_executed(container)[2] == (
        "HF_TOKEN=$(cat /etc/sr1_jax/hf_token); export HF_TOKEN; "
        f"while sleep 60; do sync {folder}/metrics.jsonl {folder}/tensorboard/*; done "
        f'2>/dev/null & {LOGGED}{folder}/logs -- python "$@"'
    )


def test_a_bucket_without_a_mount(cloud):
    """Training reads and writes it by its address; there is no sidecar."""
    _, jobset = manifest(cloud)
    assert "metadata" not in jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert "volumes" not in pod(jobset)
    command = as_executed(pod(jobset)["containers"][0])
    assert command[2] == f'{LOGGED}gs://bucket/runs/a/logs -- python "$@"'
    assert command[-1] == "--workdir=gs://bucket/runs/a"


def test_the_environment_is_a_secret(cloud):
    cloud.env["WANDB_API_KEY"] = "very secret"
    cloud.configure("ENV=XLA_FLAGS=--a=1 --b=2", PASS_ENV="WANDB_*")
    result = cloud.run("gke.sh apply")
    assert result.returncode == 0, result.stderr
    file = cloud.cache / "environment"
    assert cloud.calls()[1:3] == [
        [*CONTEXT, "delete", "secret", "run-environment", "--ignore-not-found"],
        [*CONTEXT, "create", "secret", "generic", "run-environment", f"--from-env-file={file}"],
    ]
    assert file.read_text() == "WANDB_API_KEY=very secret\nXLA_FLAGS=--a=1 --b=2\n"
    text = (cloud.cache / "jobset.yaml").read_text()
    assert "very secret" not in text + result.stdout + result.stderr
    _, jobset = yaml.safe_load_all(text)
    [container] = pod(jobset)["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "run-environment"}}]
    assert container["env"] == [{"name": "PYTHONUNBUFFERED", "value": "1"}]


AWKWARD = """it's "two  words" \\ $HOME $(id) $$ `x` # @NAME@ é: [1]"""


def test_arguments_survive_as_they_are(cloud):
    _, jobset = manifest(cloud, "--", f"--config.a={AWKWARD}", "--config.b=\t\n-")
    [container] = pod(jobset)["containers"]
    assert as_executed(container)[-2:] == [f"--config.a={AWKWARD}", "--config.b=\t\n-"]


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"GKE_CLUSTER": None}, "GKE_CLUSTER is missing; gke.sh needs it"),
        ({"GKE_LOCATION": None}, "GKE_LOCATION is missing"),
        ({"GKE_IMAGE": None}, "GKE_IMAGE is missing"),
        ({"GKE_LOCATION": "here"}, "GKE_LOCATION=here: expected the region or zone"),
        ({"ACCELERATOR_TYPE": "v6e-4", "NODES": "2"}, "NODES=2: on GKE several slices need more"),
        ({"ACCELERATOR_TYPE": "v5p-384"}, "GKE_TOPOLOGY is missing; v5p-384 comes in several"),
        ({"GKE_TOPOLOGY": "4x4"}, ":13: GKE_TOPOLOGY=4x4: that is 16 chips, v6e-8 has 8"),
        ({"ACCELERATOR_TYPE": "v5p-16", "GKE_TOPOLOGY": "2x4"}, "v5p-16 needs 3 numbers"),
        ({"GKE_TOPOLOGY": "2x2x2"}, "GKE_TOPOLOGY=2x2x2: v6e-8 needs 2 numbers"),
        ({"ACCELERATOR_TYPE": "tpu7x-16", "GKE_TOPOLOGY": "2x4"}, "tpu7x-16 needs 3 numbers"),
        ({"GKE_TOPOLOGY": "big"}, "GKE_TOPOLOGY=big: expected a topology"),
    ],
)
def test_bad_settings_of_gke(cloud, settings, complaint):
    cloud.configure(**settings)
    result = cloud.run("gke.sh apply")
    assert result.returncode == 2
    assert complaint in result.stderr
    assert cloud.calls() == []


def test_a_topology_of_ones_own(cloud):
    _, jobset = manifest(cloud, ACCELERATOR_TYPE="v5p-384", GKE_TOPOLOGY="4x4x12")
    assert pod(jobset)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x12"


def test_an_action_is_needed(cloud):
    result = cloud.shell([str(cloud.root / "tpu_scripts/gke.sh")])
    assert result.returncode == 2 and "which action?" in result.stderr
    result = cloud.run("gke.sh frob")
    assert result.returncode == 2 and "unknown action frob" in result.stderr


def test_apply(cloud, tmp_path):
    token = tmp_path / "token"
    token.write_text("hf_secret")
    cloud.configure(HF_TOKEN_FILE=str(token))
    result = cloud.run("gke.sh apply", "--", "--config.seed=3")
    assert result.returncode == 0, result.stderr
    file = tmp_path / "home/.cache/sr1_jax/run/jobset.yaml"
    assert cloud.calls() == [
        [
            *("gcloud", "container", "clusters", "get-credentials", "cluster"),
            *("--project=my-project", "--location=us-east5", "--quiet"),
        ],
        [*CONTEXT, "delete", "secret", "run-token", "--ignore-not-found"],
        [*CONTEXT, "create", "secret", "generic", "run-token", f"--from-file=hf_token={token}"],
        [*CONTEXT, "apply", f"--filename={file}"],
    ]
    _, jobset = yaml.safe_load_all(file.read_text())
    assert pod(jobset)["containers"][0]["args"][-1] == "--config.seed=3"


def test_the_manifest_of_a_dry_run_is_the_real_one(cloud, tmp_path):
    shown = cloud.run("gke.sh apply", "--dry-run", "--", f"--config.a={AWKWARD}").stdout
    render = next(line for line in shown.splitlines() if "gke.sh' render" in line)
    assert shlex.split(render)[-1] == f"{tmp_path}/home/.cache/sr1_jax/run/jobset.yaml"
    file = tmp_path / "home/.cache/sr1_jax/run/jobset.yaml"
    file.parent.mkdir(parents=True)
    assert cloud.shell(["bash", "-c", render]).returncode == 0
    rendered = file.read_text()
    assert cloud.run("gke.sh apply", "--", f"--config.a={AWKWARD}").returncode == 0
    assert file.read_text() == rendered


def test_pools(cloud):
    cloud.configure(ACCELERATOR_TYPE="v6e-16", NODES="2")
    result = cloud.run("gke.sh pools")
    assert result.returncode == 0, result.stderr
    flags = ["--node-locations=us-east5-b", "--machine-type=ct6e-standard-4t", "--num-nodes=4"]
    assert cloud.calls() == [
        [*POOL, "create", name, *CLUSTER, *flags, "--tpu-topology=4x4", "--spot", "--quiet"]
        for name in ("run-0", "run-1")
    ]
    assert "node pools cost money until they are deleted" in result.stderr
    cloud.configure(ACCELERATOR_TYPE="v5litepod-8", CAPACITY="on-demand")
    assert cloud.run("gke.sh pools").returncode == 0
    [[*_, machine, count, quiet]] = cloud.calls()
    assert [machine, count, quiet] == [
        *("--machine-type=ct5lp-hightpu-8t", "--num-nodes=1", "--quiet")
    ]
    cloud.configure(CAPACITY="reserved")
    refused = cloud.run("gke.sh pools")
    assert refused.returncode == 1 and cloud.calls() == []
    assert "CAPACITY=reserved needs RESERVATION" in refused.stderr
    cloud.configure(CAPACITY="reserved", RESERVATION="mine")
    assert cloud.run("gke.sh pools").returncode == 0
    assert cloud.calls()[0][-3:-1] == ["--reservation-affinity=specific", "--reservation=mine"]


def test_ironwood_is_placed_by_a_policy(cloud):
    policy = ["gcloud", "compute", "resource-policies"]
    place = ["--project=my-project", "--region=us-east5"]
    cloud.configure(ACCELERATOR_TYPE="tpu7x-16")
    assert cloud.run("gke.sh pools").returncode == 0
    flags = ["--node-locations=us-east5-b", "--machine-type=tpu7x-standard-4t", "--num-nodes=2"]
    assert cloud.calls() == [
        [
            *(*policy, "create", "workload-policy", "run-2x2x2", *place),
            *("--type=HIGH_THROUGHPUT", "--accelerator-topology=2x2x2", "--quiet"),
        ],
        [
            *(*POOL, "create", "run-0", *CLUSTER, *flags),
            *("--placement-policy=run-2x2x2", "--spot", "--quiet"),
        ],
    ]
    assert cloud.run("gke.sh delete-pools", "--yes").returncode == 0
    assert cloud.calls() == [
        [*POOL, "delete", "run-0", *CLUSTER, "--quiet"],
        [*policy, "delete", "run-2x2x2", *place, "--quiet"],
    ]
    cloud.configure(ACCELERATOR_TYPE="tpu7x-8")  # one host has no neighbours
    assert cloud.run("gke.sh pools").returncode == 0
    [[*_, count, spot, quiet]] = cloud.calls()
    assert [count, spot, quiet] == ["--num-nodes=1", "--spot", "--quiet"]


def test_a_pool_that_cannot_be_deleted_does_not_keep_the_others(cloud):
    cloud.configure(ACCELERATOR_TYPE="v6e-16", NODES="3")
    (cloud.fake / "fail_at").write_text("2")
    result = cloud.run("gke.sh delete-pools", "--yes")
    assert result.returncode == 1 and "may cost money: run-1; look: gcloud" in result.stderr
    assert [call[4] for call in cloud.calls()] == ["run-0", "run-1", "run-2"]


COLUMNS = (
    "POD:.metadata.name,PHASE:.status.phase,NODE:.spec.nodeName,"
    "CODE:.status.containerStatuses[*].state.terminated.exitCode"
)


def test_watch(cloud):
    cloud.configure(ACCELERATOR_TYPE="v6e-16", NODES="2")
    selector = "--selector=jobset.sigs.k8s.io/jobset-name=run"
    assert cloud.run("gke.sh watch", "--lines=7").returncode == 0
    assert cloud.calls() == [
        [*CONTEXT, "get", "jobset/run"],
        [*CONTEXT, "get", "pods", selector, f"--output=custom-columns={COLUMNS}"],
        [*CONTEXT, "logs", selector, "--prefix", "--tail=7", "--max-log-requests=8"],
    ]
    assert cloud.run("gke.sh watch", "--follow").returncode == 0
    assert [call[-1] for call in cloud.calls()] == ["--follow"]


def test_delete_asks_and_warns(cloud):
    refused = cloud.run("gke.sh delete", answer="n\n")
    assert refused.returncode == 1 and "Delete JobSet run in namespace default" in refused.stderr
    assert cloud.run("gke.sh delete-pools", answer="").returncode == 1
    assert cloud.calls() == []
    result = cloud.run("gke.sh delete", answer="y\n")
    assert "node pools stay and may cost money" in result.stderr
    assert cloud.run("gke.sh delete-pools", "--yes").returncode == 0
    assert cloud.calls() == [
        [
            *(*CONTEXT, "delete", "jobset/run", "service/run", "secret/run-token"),
            *("secret/run-environment", "--ignore-not-found"),
        ],
        [*POOL, "delete", "run-0", *CLUSTER, "--quiet"],
    ]
