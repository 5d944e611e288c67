// SPDX-License-Identifier: Apache-2.0

package bindings_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/quorum"
	"diskhook/xmlrewrite"
)

func replicaWorld(t *testing.T) (*hooktest.World, *hooktest.Quorum) {
	t.Helper()
	w := hooktest.New(t, &hooktest.Local{})
	sets := &hooktest.Quorum{Layout: w.Layout, Err: map[string]error{}, Sets: map[string]quorum.Set{"db": hooktest.Set("db"), "logs": hooktest.Set("logs")}}
	w.Quorum = sets
	return w, sets
}

// exported is the plain domain after its disks vda and vdb became sets.
func exported(t *testing.T, w *hooktest.World) bindings.Rewritten {
	t.Helper()
	r, err := w.Host.Rewrite(parseDoc(t, w.Fixture("hooks/plain.xml")), mustParse(t, "vda:quorum=db;vdb:quorum=logs", bindings.Flag))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestQuorumStarts(t *testing.T) {
	w, sets := replicaWorld(t)
	d, bound, err := w.Start(t.Context(), exported(t, w).After, nil)
	if err != nil {
		t.Fatal(err)
	}
	placed, err := w.Fulfil(t.Context(), d, bound, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	want := []bindings.Placement{{Target: "vda", Path: w.Path("run/diskhook/quorum/db/nbd.sock")}, {Target: "vdb", Path: w.Path("run/diskhook/quorum/logs/nbd.sock")}}
	if diff := cmp.Diff(want, placed); diff != "" {
		t.Error(diff)
	}
	if err := w.Own(t.Context(), d, bound, bindings.Label{Owned: true, UID: 64055, GID: 108, SELinux: "system_u:object_r:svirt_image_t:s0:c1,c2"}); err != nil {
		t.Error(err)
	}
	if err := w.Release(t.Context(), d, bound, "shutdown"); err != nil {
		t.Error(err)
	}
	label := "true 64055:108 system_u:object_r:svirt_image_t:s0:c1,c2"
	calls := []string{"start db vda 20s", "start logs vdb 20s", "own db vda " + label, "own logs vdb " + label, "stop db vda", "stop logs vdb"}
	if diff := cmp.Diff(calls, sets.Calls); diff != "" {
		t.Error(diff)
	}
}

// One set that cannot be started leaves none started.
func TestQuorumStartsAllOrNone(t *testing.T) {
	w, sets := replicaWorld(t)
	sets.Err["start logs"] = failure.Hint(failure.New(failure.Precondition, "replica set logs: 1 of its replicas have the newest generation 4, 2 are needed"), "bring r2 back")
	d, bound, err := w.Start(t.Context(), exported(t, w).After, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Fulfil(t.Context(), d, bound, 0)
	refused(t, err, failure.Precondition, "domain vm", "disk vdb", "replica set logs", "newest generation 4", "bring r2 back")
	if diff := cmp.Diff([]string{"start db vda 1m0s", "start logs vdb 1m0s", "stop db vda"}, sets.Calls); diff != "" {
		t.Error(diff)
	}
}

func TestQuorumIsNotMigrated(t *testing.T) {
	w, _ := replicaWorld(t)
	d, bound, err := w.Start(t.Context(), exported(t, w).After, nil)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, bindings.Migratable(d, bound), failure.Precondition, "vda", "quorum", "diskhook quorum build --adopt --replicas A,B,C --threshold N db")
}

func TestQuorumIdentity(t *testing.T) {
	w, _ := replicaWorld(t)
	doc := exported(t, w).After
	socket := w.Path("run/diskhook/quorum/db/nbd.sock")
	for name, c := range map[string]struct {
		from, to string
		words    []string
	}{
		"clone":            {"<uuid>" + hooktest.UUID, "<uuid>11111111-2222-4333-8444-555555555555", []string{"a clone", "domain unbind vm"}},
		"another socket":   {"socket='" + socket + "'", "socket='/run/other.sock'", []string{"vda", socket, "/run/other.sock", "apply --refresh vm"}},
		"metadata swapped": {"source='" + socket + "'", "source='/run/x'", []string{"vda", socket, "the metadata say /run/x"}},
		"target renamed":   {"<target dev='vda'", "<target dev='vdx'", []string{"vda", "vdx", "apply --refresh vm"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := w.Start(t.Context(), edit(t, doc, c.from, c.to), nil)
			refused(t, err, failure.Conflict, c.words...)
		})
	}
	// The disk is gone, but another one has what it was before.
	text := string(doc.Bytes())
	begin := strings.Index(text, "<disk type='network' device='disk'>")
	end := begin + strings.Index(text[begin:], "</disk>") + len("</disk>")
	was := "<disk type='file' device='disk'><driver type='qcow2'/><source file='" + w.Path("images/top.qcow2") + "'/><target dev='vdz'/></disk>"
	_, _, err := w.Start(t.Context(), parseDoc(t, []byte(text[:begin]+was+text[end:])), nil)
	refused(t, err, failure.Conflict, "vdz", "vda", "replica set db", "--discard-guest-data vm vda")
}

// A clone has no set of its own, and must not share that of its original.
func TestQuorumOfACloneIsNotRebound(t *testing.T) {
	w, _ := replicaWorld(t)
	clone := edit(t, exported(t, w).After, "<uuid>"+hooktest.UUID, "<uuid>11111111-2222-4333-8444-555555555555")
	_, err := w.Rebind(clone)
	refused(t, err, failure.Conflict, "vda", "replica set db", "domain unbind vm", "apply --quorum vda=NAME vm")
}

func TestQuorumIsPointedAtAgain(t *testing.T) {
	w, _ := replicaWorld(t)
	doc := exported(t, w).After
	socket := w.Path("run/diskhook/quorum/db/nbd.sock")
	after, err := w.Refresh(edit(t, doc, "socket='"+socket+"'", "socket='/run/other.sock'"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if disk, _ := after.Disk("vda"); disk.QuorumPath() != socket {
		t.Errorf("vda has %s", disk.QuorumPath())
	}
	if !bytes.Contains(after.Bytes(), []byte("<dh:origin><disk type='network' device='disk'>")) {
		t.Error("what the operator gave the disk meanwhile is not its origin")
	}
}

// The real thing leaves a receipt by which a disk that lost its binding is
// found; a fake set is enough for the reader.
func TestQuorumWithoutBinding(t *testing.T) {
	w, _ := replicaWorld(t)
	path := w.Write("var/lib/diskhook/receipts/"+hooktest.UUID+"/vda.quorum",
		`{"schema":"diskhook.quorum-use/v1","set":"db","domain":"`+hooktest.UUID+`","target":"vda","key":"vda"}`)
	plain := parseDoc(t, w.Fixture("hooks/plain.xml"))
	_, _, err := w.Start(t.Context(), plain, nil)
	refused(t, err, failure.Conflict, "vda", "its data is in the replica set db", "apply --quorum vda=db vm", "revert --discard-guest-data vm vda")
	if _, bound, err := w.Start(t.Context(), exported(t, w).After, nil); err != nil || len(bound) != 2 {
		t.Errorf("bound: %v, %v", bound, err)
	}
	uses, err := bindings.QuorumUses(w.Layout, hooktest.UUID)
	if err != nil || len(uses) != 1 || uses[0].Set != "db" {
		t.Errorf("uses %v, %v", uses, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, _, err = w.Start(t.Context(), plain, nil)
	refused(t, err, failure.Precondition, "vda", "vda.quorum")
	if err := bindings.ForgetQuorumUse(&quorum.Service{Layout: w.Layout}, uses[0]); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Start(t.Context(), plain, nil); err != nil {
		t.Error(err)
	}
}

func TestQuorumProperty(t *testing.T) {
	got, err := bindings.Properties(lookup(map[string]string{"quorum": " vda=db, c9865ca8-f6d2-4363-bec2-af870a87a819=logs"}))
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, b := range got {
		texts = append(texts, b.String())
	}
	if diff := cmp.Diff([]string{"vda:quorum=db", "c9865ca8-f6d2-4363-bec2-af870a87a819:quorum=logs"}, texts); diff != "" {
		t.Error(diff)
	}
	for name, text := range map[string]string{
		"empty": "", "no set": "vda", "no disk": "=db", "path": "vda=../db", "shell": "vda=$(reboot)", "all": "*=db", "empty pair": "vda=db,", "long": strings.Repeat("a=b,", 2000),
	} {
		_, err := bindings.Properties(lookup(map[string]string{"quorum": text}))
		t.Run(name, func(t *testing.T) { refused(t, err, failure.Usage, "property quorum", "sda=db,sdb=logs") })
	}
	_, err = bindings.Properties(lookup(map[string]string{"diskhook": "vda:quorum=db,lower=inline"}))
	refused(t, err, failure.Usage, "lower=inline is not for VMs of oVirt")
}

func TestQuorumPlan(t *testing.T) {
	w, sets := replicaWorld(t)
	sets.Err["plan logs"] = errors.New("replica set logs: no")
	doc := exported(t, w).After
	plan, err := bindings.Simulate(t.Context(), w.Host, "prepare", doc.Bytes(), nil)
	if err != nil {
		t.Fatal(err)
	}
	text := plan.String()
	for _, want := range []string{
		"disk vda: replica set db: serve it\n    diskhook quorum serve db\n",
		"disk vdb: replica set logs: it cannot be used\n",
		"refused: domain vm: disk vdb: replica set logs: no",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if diff := cmp.Diff([]string{"plan db vda", "plan logs vdb"}, sets.Calls); diff != "" {
		t.Error(diff)
	}
}

// The first child of an inline quorum is named by a number that other disks
// decide: binding one of them numbers it anew.
func TestInlineIsNumberedAnew(t *testing.T) {
	w, _ := replicaWorld(t)
	chain := "<backingStore type='file'><format type='raw'/><source file='" + w.Path("images/data.raw") + "'/><backingStore/></backingStore>\n      <target dev='vdb'"
	plain := edit(t, parseDoc(t, w.Fixture("hooks/plain.xml")), "<target dev='vdb'", chain)
	r, err := w.Host.Rewrite(plain, mustParse(t, "vda:quorum=db,lower=inline", bindings.Flag))
	if err != nil {
		t.Fatal(err)
	}
	number := func(doc *xmlrewrite.Document) string {
		t.Helper()
		if err := xmlrewrite.CheckInline(doc, "vda"); err != nil {
			t.Error(err)
		}
		nodes, _ := doc.InlineNodes("vda")
		return nodes.Children[0]
	}
	if got := number(r.After); got != "libvirt-5-format" {
		t.Errorf("behind a chain of two it takes %s", got)
	}
	again, err := w.Host.Rewrite(r.After, mustParse(t, "vdb:quorum=logs", bindings.Flag))
	if err != nil {
		t.Fatal(err)
	}
	if got := number(again.After); got != "libvirt-4-format" {
		t.Errorf("behind a socket it takes %s", got)
	}
	same, err := w.Host.Numbered(plain)
	if err != nil || !bytes.Equal(same.Bytes(), plain.Bytes()) {
		t.Errorf("a domain without inline quorums: %v, %s", err, xmlrewrite.Diff(plain.Bytes(), same.Bytes(), "was", "is"))
	}
}
