// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// Who owns a device that QEMU opens. Where libvirt was told not to see to that
// (VDSM tells it for every disk), and whenever the device changes after that, it
// is up to udev, whose own rules give block devices to root:disk at each event
// (udev(7), 50-udev-default.rules). VDSM writes a rule for each of its managed
// volumes, and so do we: below /run, since it is of no use after this boot.
//
// The rule runs chown. With OWNER= and GROUP= udev would take the node for its
// own and set its SELinux label back, upon which the guest pauses.

func (h *Host) ownerRule(volume string) string {
	return h.at("run/udev/rules.d", "99-diskhook-volume-"+volume+".rules")
}

// Own gives the attached volume at path to a user and a group, until Disown.
func (h *Host) Own(ctx context.Context, volume, path string, uid, gid int) error {
	if name, err := h.device(path); err == nil && exists(h.at("run/udev")) {
		rule := fmt.Sprintf("ACTION!=\"remove\", SUBSYSTEM==\"block\", KERNEL==\"%s\", RUN+=\"/usr/bin/chown %d:%d $env{DEVNAME}\"\n", name, uid, gid)
		if err := h.writeRule(ctx, h.ownerRule(volume), rule); err != nil {
			return err
		}
	}
	if err := os.Chown(path, uid, gid); err != nil {
		err = failure.New(failure.Precondition, "give it to QEMU's user: %w", err)
		return failure.Hint(err, "see that the storage lets root change owners (no_root_squash for NFS), then start the domain again")
	}
	return nil
}

func (h *Host) writeRule(ctx context.Context, path, rule string) error {
	if now, err := os.ReadFile(path); err == nil && string(now) == rule {
		return nil
	}
	if err := atomicfile.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := atomicfile.WriteVolatile(path, []byte(rule), 0o644); err != nil {
		return err
	}
	h.reloadRules(ctx)
	h.Settle(ctx) // an event that began before must not have the last word
	return nil
}

// Disown takes the rule away. The device is about to go, or has gone.
func (h *Host) Disown(ctx context.Context, volume string) error {
	if !exists(h.ownerRule(volume)) {
		return nil
	}
	if err := atomicfile.Remove(h.ownerRule(volume)); err != nil {
		return err
	}
	h.reloadRules(ctx)
	return nil
}

// reloadRules has udev read its rules at once; by itself it does within seconds.
func (h *Host) reloadRules(ctx context.Context) {
	_, err := unlogged(h.Run).Run(ctx, command.Cmd{Name: "udevadm", Args: []string{"control", "--reload"}, Timeout: 15 * time.Second})
	if err != nil {
		h.Log.WarnContext(ctx, "udev has not read its rules again yet", "err", err)
	}
}
