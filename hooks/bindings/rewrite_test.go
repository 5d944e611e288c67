// SPDX-License-Identifier: Apache-2.0

package bindings_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

func TestRewrite(t *testing.T) {
	w := hooktest.New(t, &hooktest.Local{})
	before := w.Fixture("hooks/plain.xml")
	r, err := w.Host.Rewrite(parseDoc(t, before), mustParse(t, "local=lvmthin", bindings.Flag))
	if err != nil {
		t.Fatal(err)
	}
	got := r.After.Bytes()
	const golden = "../../testdata/hooks/bound.xml"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(golden, []byte(strings.ReplaceAll(string(got), w.Root, "ROOT")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(w.Fixture("hooks/bound.xml")), string(got)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]bindings.Skipped{{Target: "sda", Why: "it is a CD-ROM"}, {Target: "vdc", Why: "its source is of type network"}}, r.Skipped); diff != "" {
		t.Error(diff)
	}

	t.Run("again", func(t *testing.T) {
		again, err := w.Host.Rewrite(r.After, mustParse(t, "local=lvmthin", bindings.Flag))
		if err != nil || again.Diff() != "" {
			t.Errorf("%v\n%s", err, again.Diff())
		}
	})
	t.Run("otherwise", func(t *testing.T) {
		_, err := w.Host.Rewrite(r.After, mustParse(t, "vdb:local=dir", bindings.Flag))
		refused(t, err, failure.Conflict, "vdb", "domain revert vm")
	})
	t.Run("back", func(t *testing.T) {
		back, err := xmlrewrite.Apply(r.After, xmlrewrite.RestoreOrigin{Target: "vda"}, xmlrewrite.RestoreOrigin{Target: "vdb"}, xmlrewrite.RemoveMetadata{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(before), string(back.Bytes())); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("clone", func(t *testing.T) {
		const other = "11111111-2222-4333-8444-555555555555"
		clone := edit(t, r.After, "<uuid>"+hooktest.UUID, "<uuid>"+other)
		_, err := w.Host.Rewrite(clone, nil)
		refused(t, err, failure.Conflict, "rebind")
		rebound, err := w.Host.Rebind(clone)
		if err != nil {
			t.Fatal(err)
		}
		text := string(rebound.Bytes())
		if strings.Contains(text, hooktest.UUID) || strings.Count(text, "disks/"+other+"/vda") != 2 || !strings.Contains(text, "images/top.qcow2") {
			t.Errorf("%s", text)
		}
		if _, bound, err := w.Start(t.Context(), rebound, nil); err != nil || len(bound) != 2 {
			t.Errorf("%v, %v", bound, err)
		}
	})
	t.Run("refresh", func(t *testing.T) {
		stable := w.Path("run/diskhook/disks/" + hooktest.UUID + "/vda")
		drifted := edit(t, r.After, "<source dev='"+stable+"'", "<source dev='/srv/moved'")
		fresh, err := w.Host.Refresh(drifted, map[string]string{"vda": "copy-uuid"})
		if err != nil {
			t.Fatal(err)
		}
		m, err := fresh.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		entry, _ := m.Disk("vda")
		disk, _ := fresh.Disk("vda")
		if disk.Source.Path() != stable || entry.Source != stable || entry.Local.Copy != "copy-uuid" || !strings.Contains(string(entry.Origin), "/srv/moved") {
			t.Errorf("%+v\n%s", entry, fresh.Bytes())
		}
	})
}

func TestRewriteRefuses(t *testing.T) {
	w := hooktest.New(t, &hooktest.Local{})
	plain := parseDoc(t, w.Fixture("hooks/plain.xml"))
	for name, c := range map[string]struct {
		doc  *xmlrewrite.Document
		bind string
		kind *failure.Kind
		word string
	}{
		"cd-rom":         {plain, "sda:local=dir", failure.Usage, "CD-ROM"},
		"a copy":         {edit(t, plain, w.Path("images/top.qcow2"), w.Path("var/lib/diskhook/local/x.raw")), "vda:local=dir", failure.Precondition, "never a source"},
		"a volume there": {edit(t, plain, w.Path("images/top.qcow2"), "/dev/ovirt-local/x"), "vda:local=dir", failure.Precondition, "never a source"},
		"its dm name":    {edit(t, plain, w.Path("images/top.qcow2"), "/dev/mapper/ovirt--local-x"), "vda:local=dir", failure.Precondition, "never a source"},
		"no uuid":        {edit(t, plain, "<uuid>"+hooktest.UUID+"</uuid>", ""), "vda:local=dir", failure.Usage, "uuid"},
		"odd uuid":       {edit(t, plain, "<uuid>"+hooktest.UUID, "<uuid>../../x"), "vda:local=dir", failure.Usage, "uuid"},
		"odd target":     {edit(t, plain, "<target dev='vda'", "<target dev='../x'"), "disk-a:local=dir", failure.Usage, "target"},
	} {
		r, err := w.Host.Rewrite(c.doc, mustParse(t, c.bind, bindings.Flag))
		t.Run(name, func(t *testing.T) {
			if err == nil {
				t.Fatalf("rewritten to\n%s", r.After.Bytes())
			}
			if failure.KindOf(err) != c.kind || !strings.Contains(failure.Line(err), c.word) {
				t.Error(failure.Line(err))
			}
		})
	}
	damaged := edit(t, applied(t, w), "<dh:disk target='vda'", "<dh:disk target=''")
	_, err := w.Host.Rewrite(damaged, nil)
	refused(t, err, failure.Precondition, "domain vm", "domain unbind vm")
}

func TestSimulateChangesNothing(t *testing.T) {
	w := hooktest.New(t, nil)
	w.Chain("images")
	doc := applied(t, w)
	before := w.Files("")
	for op, words := range map[string][]string{
		"prepare": {"domain vm: prepare", "disk vda: make and fill a copy", "images/top.qcow2", "link " + w.Path("run/diskhook/disks/"+hooktest.UUID+"/vda")},
		"migrate": {"refused: domain vm: disk vda is bound to local and cannot be migrated"},
		"release": {"domain vm: release", "disk vda: release its copy"},
		"restore": {"domain vm: restore: pass the XML as it is"},
		// Nothing runs, so there is no copy to link to, and none is made.
		"reconnect": {"disk vda: refuse", "refused: domain vm: disk vda"},
	} {
		plan, err := bindings.Simulate(t.Context(), w.Host, op, doc.Bytes(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range words {
			if !strings.Contains(plan.String(), word) {
				t.Errorf("%s lacks %q:\n%s", op, word, plan)
			}
		}
	}
	// The domain's own metadata have the property localdisk=lvm.
	plan, err := bindings.Simulate(t.Context(), w.Host, "before_vm_start", w.Fixture("vdsm/engine.xml"), nil)
	if err != nil || !strings.Contains(plan.String(), "+      <source dev=\"/dev/ovirt-local/1dfad482-c65c-436c-aa59-87e020b63302\"") {
		t.Errorf("%v\n%s", err, plan)
	}
	plan, err = bindings.Simulate(t.Context(), w.Host, "prepare", w.Fixture("hooks/plain.xml"), nil)
	if err != nil || !strings.Contains(plan.String(), "nothing: no disk is bound") {
		t.Errorf("%v\n%s", err, plan)
	}
	if _, err := bindings.Simulate(t.Context(), w.Host, "started", doc.Bytes(), nil); failure.KindOf(err) != failure.Usage {
		t.Errorf("started: %v", err)
	}
	if diff := cmp.Diff(before, w.Files("")); diff != "" {
		t.Error(diff)
	}
}
