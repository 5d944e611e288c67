// SPDX-License-Identifier: Apache-2.0

//go:build cgo && libvirt_dlopen

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirt"

	"diskhook/hooks/bindings"
	"diskhook/hooks/domains"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
)

// inProcess runs diskhook-domain's verbs over one connection: libvirt's test
// driver forgets its domains with it.
type inProcess struct{ conn *libvirt.Connect }

func (r inProcess) Run(_ context.Context, cmd command.Cmd) (command.Result, error) {
	if cmd.Name != "diskhook-domain" {
		return command.Result{}, &command.Error{Argv: cmd.Argv(), Code: 127}
	}
	request, err := io.ReadAll(cmd.Stdin)
	if err != nil {
		return command.Result{}, err
	}
	answer, err := verbs()[cmd.Args[len(cmd.Args)-1]](r.conn, request)
	if err != nil {
		b, _ := json.Marshal(report(err))
		return command.Result{Stdout: b}, &command.Error{Argv: cmd.Argv(), Code: 1}
	}
	b, err := json.Marshal(answer)
	return command.Result{Stdout: b}, err
}

func newService(t *testing.T) (*domains.Service, *libvirt.Connect, string) {
	conn := connect(t)
	root := t.TempDir()
	for path, content := range map[string]string{
		"etc/machine-id": "0123456789abcdef0123456789abcdef\n",
		"images/a.raw":   strings.Repeat("x", 4096),
		"images/b.raw":   strings.Repeat("y", 4096),
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := host.Layout{Root: root}
	config := host.Defaults(l)
	config.Paths.Roots = []string{filepath.Join(root, "images")}
	log := slog.New(slog.DiscardHandler)
	run := inProcess{conn}
	local := &localdisk.Service{Layout: l, Config: config, Run: run, Log: log, Program: "/nonexistent"}
	h := &bindings.Host{Layout: l, Config: config, Log: log, Local: bindings.Direct(local)}
	client := &domains.Client{Run: run, Program: "diskhook-domain", URI: "test:///default"}
	return &domains.Service{Libvirt: client, Host: h, Local: local}, conn, root
}

const twoDisks = `<domain type='test'>
  <name>%[1]s</name>
  <uuid>%[2]s</uuid>
  <metadata>
    <other:thing xmlns:other='http://example.org/other' note="it's &quot;kept&quot;"/>
  </metadata>
  <memory unit='KiB'>8192</memory>
  <os><type arch='i686'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='writeback' discard='unmap'/>
      <source file='%[3]s/images/a.raw'/>
      <target dev='vda' bus='virtio'/>
      <serial>AB 12.x</serial>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='%[3]s/images/b.raw'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
  </devices>
</domain>`

const uuidA = "11111111-2222-3333-4444-555555555555"

// What libvirt stores is compared with what it was given, whatever libvirt
// does to the bytes; and a revert leaves nothing of us.
func TestApplyAndRevertOnLibvirt(t *testing.T) {
	s, conn, root := newService(t)
	ctx := t.Context()
	defineVM(t, conn, fmt.Sprintf(twoDisks, "vm", uuidA, root))
	before, err := s.Libvirt.XML(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	written, err := bindings.Parse("--bind", "*:local=dir,fill=start", bindings.Flag)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.PlanApply(ctx, "vm", written, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(ctx, p, localdisk.Waiting{}); err != nil {
		t.Fatal(err)
	}
	d, err := s.Look(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	if d.Metadata == nil || len(d.Metadata.Disks) != 2 || d.Metadata.Domain != uuidA {
		t.Fatalf("metadata %+v", d.Metadata)
	}
	for _, disk := range d.Disks {
		if want := localdisk.StablePath(s.Host.Layout, uuidA, disk.Target); disk.Path != want {
			t.Errorf("disk %s: source %s, want %s", disk.Target, disk.Path, want)
		}
	}
	again, err := s.PlanApply(ctx, "vm", nil, false)
	if err != nil || again.Changes() {
		t.Errorf("a second apply: %v, diff %s", err, again.Diff())
	}

	p, err = s.PlanRevert(ctx, "vm", nil, domains.GivingUp{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Revert(ctx, p, nil); err != nil {
		t.Fatal(err)
	}
	after, err := s.Libvirt.XML(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(before), string(after)); diff != "" {
		t.Errorf("after apply and revert: %s", diff)
	}
}

// Somebody else's edit between plan and define is not overwritten.
func TestADefinitionThatChangedMeanwhileIsLeftAlone(t *testing.T) {
	s, conn, root := newService(t)
	ctx := t.Context()
	xml := fmt.Sprintf(twoDisks, "vm", uuidA, root)
	defineVM(t, conn, xml)
	written, err := bindings.Parse("--bind", "vda:local=dir,fill=start", bindings.Flag)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.PlanApply(ctx, "vm", written, false)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(xml, "8192", "16384", 1)
	defineVM(t, conn, edited)
	if err := s.Apply(ctx, p, localdisk.Waiting{}); failure.KindOf(err) != failure.Temporary {
		t.Errorf("got %v", err)
	}
	stored, err := s.Libvirt.XML(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(stored), "16384") || strings.Contains(string(stored), "diskhook") {
		t.Errorf("stored %s", stored)
	}
}

// A domain that started between plan and define is left alone, too.
func TestADomainThatStartedMeanwhileIsLeftAlone(t *testing.T) {
	s, conn, root := newService(t)
	ctx := t.Context()
	defineVM(t, conn, fmt.Sprintf(twoDisks, "vm", uuidA, root))
	written, err := bindings.Parse("--bind", "vda:local=dir,fill=start", bindings.Flag)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.PlanApply(ctx, "vm", written, false)
	if err != nil {
		t.Fatal(err)
	}
	dom, err := lookup(conn, "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer dom.Free()
	if err := dom.Create(); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(ctx, p, localdisk.Waiting{}); failure.KindOf(err) != failure.Conflict || !strings.Contains(err.Error(), "it is running") {
		t.Errorf("got %v", err)
	}
	if _, err := s.PlanApply(ctx, "vm", written, false); failure.KindOf(err) != failure.Conflict {
		t.Errorf("plan for a running domain: %v", err)
	}
}

// What apply must not touch, as real libvirt reports it.
func TestManagedSaveOfLibvirtIsSeen(t *testing.T) {
	s, conn, root := newService(t)
	defineVM(t, conn, fmt.Sprintf(twoDisks, "vm", uuidA, root))
	dom, err := lookup(conn, "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer dom.Free()
	if err := dom.Create(); err != nil {
		t.Fatal(err)
	}
	if err := dom.ManagedSave(0); err != nil {
		t.Fatal(err)
	}
	written, err := bindings.Parse("--bind", "vda:local=dir,fill=start", bindings.Flag)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PlanApply(t.Context(), "vm", written, false); failure.KindOf(err) != failure.Conflict || !strings.Contains(err.Error(), "managed save") {
		t.Errorf("got %v", err)
	}
}

func defineVM(t *testing.T, conn *libvirt.Connect, xml string) {
	t.Helper()
	if _, err := define(conn, domains.Definition{XML: xml}); err != nil {
		t.Fatal(err)
	}
}
