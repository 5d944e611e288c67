// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"os"
	"testing"

	"diskhook/storage/command/commandtest"
)

const definition = `{"schema":"diskhook.quorum/v1","name":"db","uuid":"aaaaaaaa-0000-4000-8000-000000000001","size":1048576,"threshold":2,
"read_pattern":"quorum","next_id":3,"replicas":[{"id":"r1","chain":[{"type":"file","path":"/srv/1","format":"raw"}]},{"id":"r2","chain":[{"type":"file","path":"/srv/2","format":"raw"}]}]}`

func TestReplicaSets(t *testing.T) {
	h := newHost(t)
	h.Config.Quorum.Daemon = "/opt/qsd"
	vhost := "qemu-storage-daemon: --export type=vhost-user-blk,id=e: Cannot find device='' nor node-name='nosuch'"
	device := "vhost-user-blk-pci options:\n  addr=<int32>"
	says := func(daemon string) {
		h.Run = &commandtest.Runner{T: t, Answers: []commandtest.Answer{
			{Prefix: "/opt/qsd --blockdev driver=null-co,node-name=a", Stderr: daemon, Code: 1},
			{Prefix: "/opt/qsd --export type=vhost-user-blk", Stderr: vhost, Code: 1},
			{Prefix: emulator() + " -machine none -nodefaults -display none -device vhost", Stdout: device},
			{Prefix: "qemu-system-", Stderr: "qemu-system-x86_64: -device nosuch: 'nosuch' is not a valid device model name", Code: 1},
		}}
	}
	says("qemu-storage-daemon: --export type=nbd,id=e,node-name=nosuch: Cannot find device='' nor node-name='nosuch'")
	one(t, replicaSets(t.Context(), h), OK, "/opt/qsd knows quorum", "")
	refuses := "qemu-storage-daemon: --blockdev " + voters + ": Driver 'quorum' is not whitelisted"
	says(refuses)
	one(t, replicaSets(t.Context(), h), OK, "no replica sets are defined (and /opt/qsd could not serve any", "")

	path := h.write(t, "/etc/diskhook/quorum.d/db.json", definition, 0o600)
	one(t, replicaSets(t.Context(), h)[:1], Fail, "not whitelisted", "quorum.daemon in diskhook.toml")
	one(t, replicaSets(t.Context(), h)[1:2], OK, "transport=vhost-user is possible", "")
	if emulator() != "" {
		device = ""
		says("")
		one(t, replicaSets(t.Context(), h)[1:2], Warn, "has no device vhost-user-blk", "use transport=nbd")
	}
	vhost = "qemu-storage-daemon: --export type=vhost-user-blk,id=e: Parameter 'type' does not accept value 'vhost-user-blk'"
	says("")
	one(t, replicaSets(t.Context(), h)[1:2], Warn, "transport=vhost-user is not possible: /opt/qsd cannot serve vhost-user-blk", "use transport=nbd")
	one(t, replicaSets(t.Context(), h)[:1], Fail, "/opt/qsd cannot serve replica sets", "quorum.daemon")

	dir := h.at("/run/diskhook/quorum")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for mode, level := range map[os.FileMode]Level{0o711: OK, 0o700: Fail, 0o777: Fail} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		fix := "chmod 0711"
		if level == OK {
			fix = ""
		}
		one(t, h.socketFolder(), level, dir, fix)
	}
	h.write(t, "/sys/module/apparmor/parameters/enabled", "Y\n", 0o644)
	one(t, h.socketRules(), Warn, "AppArmor", "contrib/apparmor/libvirt-qemu")
	h.write(t, "/etc/apparmor.d/local/abstractions/libvirt-qemu", "/run/diskhook/quorum/*/nbd.sock rw,\n", 0o644)
	if found := h.socketRules(); len(found) != 0 {
		t.Errorf("%+v", found)
	}
	h.write(t, "/sys/fs/selinux/enforce", "1", 0o644)
	one(t, h.socketRules(), Warn, "SELinux", "contrib/selinux")

	h.write(t, "/etc/diskhook/quorum.d/db.json", "{", 0o600)
	one(t, replicaSets(t.Context(), h), Fail, path, "backup")
}
