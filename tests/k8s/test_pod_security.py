"""Every pod of every build meets the restricted Pod Security Standard, field by field.

The controls are those of kubernetes.io/docs/concepts/security/pod-security-standards, baseline and restricted, in the
order of that page. What the standard lets pass unset and a field would have to say is asked for all the same.
"""

from typing import Any

import pytest

from tests.k8s.tools import BUILDS, built, one, pod_specs

PODS = [pytest.param(spec, id=f"{build} {name}") for build in BUILDS for name, spec in pod_specs(built(build))]

VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"),
}
SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"),
    *("net.ipv4.tcp_keepalive_probes",),
}

Spec = dict[str, Any]
pods = pytest.mark.parametrize("spec", PODS)


def containers(spec: Spec) -> list[Spec]:
    """Return all containers of a pod, of every kind."""
    return [one for sort in ("initContainers", "containers", "ephemeralContainers") for one in spec.get(sort, [])]


def contexts(spec: Spec) -> list[Spec]:
    """Return the security contexts of the pod and of its containers."""
    return [spec["securityContext"], *(container["securityContext"] for container in containers(spec))]


@pods
def test_host(spec: Spec) -> None:
    """Baseline: no host namespaces, paths or ports, no probes of other hosts, and no Windows host processes."""
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        assert not spec.get(field)
    assert not any("hostPath" in volume for volume in spec.get("volumes", []))
    assert not any("hostProcess" in context.get("windowsOptions", {}) for context in contexts(spec))
    for container in containers(spec):
        assert not any(port.get("hostPort") for port in container.get("ports", []))
        handlers = [container.get(probe, {}) for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
        handlers += container.get("lifecycle", {}).values()
        for handler in handlers:
            assert "host" not in handler.get("httpGet", {})
            assert "host" not in handler.get("tcpSocket", {})


@pods
def test_kernel(spec: Spec) -> None:
    """Baseline: no override of AppArmor or SELinux, the default /proc mask, and only safe sysctls."""
    for context in contexts(spec):
        assert context.get("appArmorProfile", {}).get("type", "RuntimeDefault") in ("RuntimeDefault", "Localhost")
        selinux = context.get("seLinuxOptions", {})
        assert selinux.get("type", "") in (
            "",
            "container_t",
            "container_init_t",
            "container_kvm_t",
            "container_engine_t",
        )
        assert not selinux.get("user")
        assert not selinux.get("role")
        assert context.get("procMount", "Default") == "Default"
    assert {sysctl["name"] for sysctl in spec["securityContext"].get("sysctls", [])} <= SYSCTLS


@pods
def test_volumes(spec: Spec) -> None:
    """Restricted: only volumes of the allowed kinds."""
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        assert len(kinds) == 1
        assert kinds <= VOLUMES


@pods
def test_privileges(spec: Spec) -> None:
    """Baseline and restricted: not privileged, no privilege escalation, and no capabilities."""
    for container in containers(spec):
        context = container["securityContext"]
        assert not context.get("privileged")
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


@pods
def test_user(spec: Spec) -> None:
    """Restricted: the pod runs as a numeric user other than root, and no container overrides it."""
    assert spec["securityContext"]["runAsNonRoot"] is True
    for context in contexts(spec):
        assert context.get("runAsNonRoot", True) is True
        assert context.get("runAsUser", 1) > 0
        assert context.get("runAsGroup", 1) > 0
    assert spec["securityContext"]["runAsUser"] >= 1


@pods
def test_seccomp(spec: Spec) -> None:
    """Restricted: the pod has the runtime's seccomp profile, and no container overrides it."""
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for context in contexts(spec):
        assert context.get("seccompProfile", {}).get("type", "RuntimeDefault") == "RuntimeDefault"


@pods
def test_beyond_the_standard(spec: Spec) -> None:
    """Beyond the standard: a read-only root, no token, no service variables, and limits on memory and disk."""
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    for container in containers(spec):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        resources = container["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"])
        assert "memory" in resources["limits"]
    for volume in spec.get("volumes", []):
        assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""})


@pytest.mark.parametrize("build", [name for name in BUILDS if name.startswith("overlays/")])
def test_namespace_enforces_it(build: str) -> None:
    """The namespaces of the overlays enforce the restricted standard."""
    namespace = one(built(build), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for document in built(build):
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == namespace["metadata"]["name"]
