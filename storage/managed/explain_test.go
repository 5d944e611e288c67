// SPDX-License-Identifier: Apache-2.0

package managed_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector/connectortest"
	"diskhook/storage/managed/database"
)

// told is an explanation without the world's directory.
func (h *home) told(lines []string, err error) string {
	h.t.Helper()
	must(h.t, err)
	return strings.ReplaceAll(strings.Join(lines, "\n"), h.Dir, "")
}

func TestExplainLeavesNoTrace(t *testing.T) {
	h := newHome(t)
	ctx := t.Context()
	if told := h.told(h.ExplainDefine(ctx, "v", []byte(nvme))); told != "# write /etc/diskhook/volumes.d/v.json" {
		t.Errorf("define: %s", told)
	}
	if all, err := h.List(ctx); err != nil || len(all) > 0 {
		t.Errorf("list: %v, %v", all, err)
	}
	if _, err := h.Reconcile(ctx, false); err != nil {
		t.Error(err)
	}
	if _, err := h.ExplainAttach(ctx, managed.Request{ID: "v", Domain: domain}); !errors.Is(err, failure.NotFound) {
		t.Errorf("attach of what is not defined: %v", err)
	}
	if told := h.told(h.ExplainDetach(ctx, "v", "")); told != "" {
		t.Errorf("detach of what is not attached: %s", told)
	}
	if _, err := os.Stat(h.Database); !os.IsNotExist(err) {
		t.Errorf("the database was made: %v", err)
	}

	h.define("v", nvme)
	want := `# note in /var/lib/diskhook/managed.db that volume v is being attached
modprobe -- nvme-tcp
nvme connect -t tcp -n nqn.s -a 1.1.1.1 -s 4420 -Q 128 -l -1
# have its controllers look again for namespaces (rescan_controller), and find the volume's
# look whether it is the volume that it was, and note what it is
# link /run/diskhook/volumes/v to its device`
	if diff := cmp.Diff(want, h.told(h.ExplainAttach(ctx, managed.Request{ID: "v", Domain: domain}))); diff != "" {
		t.Errorf("attach (-want +got):\n%s", diff)
	}
	if _, err := h.ExplainUndefine(ctx, "w"); !errors.Is(err, failure.NotFound) {
		t.Errorf("undefine of what is not defined: %v", err)
	}
	h.clean()

	_, err := h.fulfil("v", domain)
	must(t, err)
	if told := h.told(h.ExplainAttach(ctx, managed.Request{ID: "v", Domain: domain})); told != "" {
		t.Errorf("attach again: %s", told)
	}
	if told := h.told(h.ExplainDefine(ctx, "v", []byte(nvme))); told != "" {
		t.Errorf("define again: %s", told)
	}
	must(t, os.Remove(h.Link("v")))
	if told := h.told(h.ExplainAttach(ctx, managed.Request{ID: "v", Domain: domain})); told != "ln -sfn /dev/nvme0n1 /run/diskhook/volumes/v" {
		t.Errorf("attach without the link: %s", told)
	}
	for what, err := range map[string]error{
		"attach for another domain": second(h.ExplainAttach(ctx, managed.Request{ID: "v", Domain: another})),
		"attach for none":           second(h.ExplainAttach(ctx, managed.Request{ID: "v"})),
		"detach by another domain":  second(h.ExplainDetach(ctx, "v", another)),
		"undefine":                  second(h.ExplainUndefine(ctx, "v")),
		"define otherwise":          second(h.ExplainDefine(ctx, "v", []byte(nfs))),
	} {
		if !errors.Is(err, failure.Conflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
	want = `blockdev --flushbufs /dev/nvme0n1
nvme disconnect -d nvme0
# forget volume v in /var/lib/diskhook/managed.db`
	if diff := cmp.Diff(want, h.told(h.ExplainDetach(ctx, "v", domain))); diff != "" {
		t.Errorf("detach (-want +got):\n%s", diff)
	}
	if got, err := os.Readlink(h.Link("v")); err == nil {
		t.Errorf("the link was made: %s", got)
	}
}

func second[T any](_ T, err error) error { return err }

// A claim that is left without its volume is told of, too: it keeps others away.
func TestExplainDetachOfAStrayClaim(t *testing.T) {
	h := newHome(t)
	h.row(func(tx *database.Tx) error {
		return tx.SetClaim(database.Claim{Volume: "v1", Domain: domain, Boot: h.boot()})
	})
	if told := h.told(h.ExplainDetach(t.Context(), "v1", domain)); !strings.Contains(told, "# forget volume v1 in ") {
		t.Errorf("told %q", told)
	}
	must(t, h.Detach(t.Context(), "v1", domain))
	h.clean()
	if told := h.told(h.ExplainDetach(t.Context(), "v1", domain)); told != "" {
		t.Errorf("told %q", told)
	}
}

func TestList(t *testing.T) {
	h := newHome(t)
	h.define("b", nvme)
	h.define("a", fc)
	_, err := h.fulfil("b", domain)
	must(t, err)
	_, err = h.attach("c", nfs)
	must(t, err)
	list := func() []managed.Volume {
		all, err := h.List(t.Context())
		must(t, err)
		for i := range all {
			all[i].Path, all[i].Link = strings.TrimPrefix(all[i].Path, h.Dir), strings.TrimPrefix(all[i].Link, h.Dir)
		}
		return all
	}
	a := managed.Volume{ID: "a", Type: "fibre_channel", Defined: true, Link: "/run/diskhook/volumes/a"}
	b := managed.Volume{ID: "b", Type: "nvmeof", Defined: true, Attached: true, Domain: domain, Path: "/dev/nvme0n1", Link: "/run/diskhook/volumes/b"}
	all := list()
	if diff := cmp.Diff([]managed.Volume{a, b}, all[:2]); diff != "" || len(all) != 3 || all[2].ID != "c" || !all[2].Attached {
		t.Errorf("list (-want +got):\n%s\n%v", diff, all)
	}
	if devices, err := h.Devices(t.Context()); err != nil || len(devices) > 0 {
		t.Errorf("devices that are volumes: %v, %v", devices, err)
	}
	h.change(func(s *connectortest.Storage) { delete(s.NVMe, "nqn.s") })
	must(t, h.Reboot())
	b.Attached, b.Domain, b.Problem = false, "", managed.EarlierBoot
	if diff := cmp.Diff(b, list()[1]); diff != "" {
		t.Errorf("after a reboot (-want +got):\n%s", diff)
	}
	must(t, h.Write("etc/diskhook/volumes.d/x.json", "{"))
	if all, err := h.List(t.Context()); err == nil || len(all) != 3 {
		t.Errorf("with a damaged definition: %v, %v", all, err)
	}
}
