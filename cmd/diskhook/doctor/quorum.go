// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

// replicaSets looks whether the sets that are defined can be served. On a host
// without any, what is missing is no fault.
func replicaSets(ctx context.Context, h *Host) []Finding {
	s := &quorum.Service{Layout: h.Layout, Config: h.Config, Run: h.Run, Log: h.Log}
	sets, faults := s.List(ctx)
	if faults != nil {
		return []Finding{failed(faults)}
	}
	found := []Finding{h.quorumDaemon(ctx, len(sets) > 0)}
	if len(sets) == 0 {
		return found
	}
	found = append(found, h.vhostUser(ctx, s), h.quorumEmulator(ctx))
	found = append(found, h.socketFolder()...)
	return append(found, h.socketRules()...)
}

// A program that knows the driver gets past these arguments, and stops at the
// last one, which names something that does not exist. One whose build left it
// out, or does not allow it, stops before.
const voters = `{"driver":"quorum","node-name":"q","vote-threshold":2,"children":["a","b"]}`

func (h *Host) quorumDaemon(ctx context.Context, needed bool) Finding {
	program := h.Config.Quorum.Daemon
	if program == "" {
		program = "qemu-storage-daemon"
	}
	fix := "install a QEMU whose tools know the driver quorum (Debian: qemu-system-common), or name one as quorum.daemon in diskhook.toml"
	knows, why := h.knowsQuorum(ctx, program,
		"--blockdev", "driver=null-co,node-name=a,size=512", "--blockdev", "driver=null-co,node-name=b,size=512",
		"--blockdev", voters, "--export", "type=nbd,id=e,node-name=nosuch")
	switch {
	case knows:
		return ok("%s knows quorum", program)
	case !needed:
		return ok("no replica sets are defined (and %s could not serve any: %s)", program, why)
	}
	return fail(fix, "%s cannot serve replica sets: %s", program, why)
}

// vhostUser: only domains with transport=vhost-user need it.
func (h *Host) vhostUser(ctx context.Context, s *quorum.Service) Finding {
	if err := s.ServesVhostUser(ctx); err != nil {
		return warn(failure.HintOf(err), "transport=vhost-user is not possible: %s", failure.OneLine(err.Error()))
	}
	if program := emulator(); program != "" {
		// Its exit code is 0 in any case.
		has, err := h.Run.Run(ctx, command.Cmd{
			Name: program, Timeout: 10 * time.Second,
			Args: []string{"-machine", "none", "-nodefaults", "-display", "none", "-device", "vhost-user-blk-pci,help"},
		})
		if err != nil || !strings.Contains(string(has.Stdout), "vhost-user-blk-pci options") {
			return warn("use transport=nbd", "%s has no device vhost-user-blk, so transport=vhost-user is not possible", program)
		}
	}
	return ok("replica sets can be served as vhost-user-blk: transport=vhost-user is possible")
}

// quorumEmulator: only domains with lower=inline need it.
func (h *Host) quorumEmulator(ctx context.Context) Finding {
	fix := "use lower=export, which needs nothing of the emulator"
	program := emulator()
	if program == "" {
		return warn(fix, "no emulator was found, so whether lower=inline is possible is not known")
	}
	knows, why := h.knowsQuorum(ctx, program, "-machine", "none", "-nodefaults", "-display", "none",
		"-blockdev", "driver=null-co,node-name=a,size=512", "-blockdev", "driver=null-co,node-name=b,size=512",
		"-blockdev", voters, "-device", "nosuch")
	if knows {
		return ok("%s knows quorum: lower=inline is possible", program)
	}
	return warn(fix, "%s does not open quorum itself, so lower=inline is not possible: %s", program, why)
}

// emulator is the one that this host has, or "".
func emulator() string {
	programs := []string{"qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-system-aarch64"}
	i := slices.IndexFunc(programs, func(program string) bool {
		_, err := command.Find(program)
		return err == nil
	})
	if i < 0 {
		return ""
	}
	return programs[i]
}

func (h *Host) knowsQuorum(ctx context.Context, program string, args ...string) (knows bool, why string) {
	_, err := h.Run.Run(ctx, command.Cmd{Name: program, Args: args, Timeout: 10 * time.Second})
	var e *command.Error
	if !errors.As(err, &e) {
		if err == nil {
			return false, "it accepts what cannot be"
		}
		return false, failure.OneLine(err.Error())
	}
	said := e.Stderr
	if strings.Contains(said, "nosuch") && !strings.Contains(said, voters) {
		return true, ""
	}
	if said == "" {
		said = e.Error()
	}
	return false, failure.OneLine(said)
}

// socketFolder: QEMU passes through, and nobody else puts a socket there.
func (h *Host) socketFolder() []Finding {
	dir := filepath.Join(h.Layout.Run(), "quorum")
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil // the first set that is served makes it
	case err != nil:
		return []Finding{fail("ls -ld "+dir, "%v", err)}
	case st.Mode().Perm()&0o022 != 0 || st.Mode().Perm()&0o111 != 0o111:
		return []Finding{fail("chmod 0711 "+dir, "%s has mode %04o: QEMU must pass through it, and others must not write", dir, st.Mode().Perm())}
	}
	return []Finding{ok("%s has mode %04o", dir, st.Mode().Perm())}
}

// socketRules: libvirt makes no rule for a socket that a QEMU only connects to.
func (h *Host) socketRules() []Finding {
	var found []Finding
	if read(h.at("/sys/module/apparmor/parameters/enabled")) == "Y" {
		local := h.at("/etc/apparmor.d/local/abstractions/libvirt-qemu")
		if !strings.Contains(read(local), "/run/diskhook/quorum/") {
			found = append(found, warn("append contrib/apparmor/libvirt-qemu to "+local, "AppArmor is enabled, and its rules for QEMU do not name the sockets of replica sets"))
		}
	}
	if read(h.at("/sys/fs/selinux/enforce")) == "1" {
		found = append(found, warn("load the module in contrib/selinux/README.md, then see `ausearch -m avc -ts recent`", "SELinux is enforcing: whether QEMU may connect to what serves replica sets cannot be seen from here"))
	}
	return found
}
