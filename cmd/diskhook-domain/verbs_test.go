// SPDX-License-Identifier: Apache-2.0

//go:build cgo && libvirt_dlopen

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"libvirt.org/go/libvirt"

	"diskhook/hooks/domains"
	"diskhook/storage/failure"
)

// testDomain is the one that libvirt's test driver starts with.
var testDomain = domains.Facts{
	Name: "test", UUID: "6695eb01-f6a4-8304-79aa-97f2502e193f",
	State: "running", Active: true, Persistent: true,
}

const offline = `<domain type='test'>
  <name>%s</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <metadata>
    <dh:disks xmlns:dh='urn:diskhook:1' domain='c7a5fdbd-edaf-9455-926a-d65c16db1809'/>
  </metadata>
  <memory unit='KiB'>8192</memory>
  <os><type arch='i686'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/guest/disk.img'/>
      <target dev='vda'/>
    </disk>
  </devices>
</domain>`

// connect opens libvirt's in-process test driver. A machine without libvirt
// fails the test, unless its absence is asked for by name.
func connect(t *testing.T) *libvirt.Connect {
	t.Helper()
	if os.Getenv("SKIP_LIBVIRT") == "1" {
		t.Skip("SKIP_LIBVIRT=1")
	}
	conn, err := libvirt.NewConnect("test:///default")
	if err != nil {
		t.Fatalf("%v; install libvirt0, or set SKIP_LIBVIRT=1", err)
	}
	t.Cleanup(func() { _, _ = conn.Close() })
	return conn
}

func ask[A any](t *testing.T, conn *libvirt.Connect, verb string, request any) (A, error) {
	t.Helper()
	var answer A
	in, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	got, err := verbs()[verb](conn, in)
	if err != nil {
		return answer, err
	}
	return got.(A), nil
}

func TestListAndFacts(t *testing.T) {
	conn := connect(t)
	all, err := ask[domains.List](t, conn, domains.VerbList, domains.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	ownRun := cmpopts.IgnoreFields(domains.Facts{}, "Run") // of this boot; see TestRunsAreTold
	if diff := cmp.Diff([]domains.Facts{testDomain}, all.Domains, ownRun); diff != "" {
		t.Errorf("list: %s", diff)
	}
	for _, by := range []string{"test", testDomain.UUID, strings.ToUpper(testDomain.UUID)} {
		f, err := ask[domains.Facts](t, conn, domains.VerbFacts, domains.DomainRequest{Domain: by})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(testDomain, f, ownRun); diff != "" {
			t.Errorf("facts of %s: %s", by, diff)
		}
	}
	withXML, err := ask[domains.List](t, conn, domains.VerbList, domains.ListRequest{XML: true})
	if err != nil {
		t.Fatal(err)
	}
	d := withXML.Domains[0]
	if !strings.Contains(d.XML, "<name>test</name>") || !strings.Contains(d.Live, "<domain type='test' id=") {
		t.Errorf("definitions %q, %q", d.XML, d.Live)
	}
}

// What is defined comes back with its metadata, and can be looked up whatever
// its name looks like.
func TestDefineAndXML(t *testing.T) {
	for _, name := range []string{"guest", "-rf", "a b'c", "--connect"} {
		t.Run(name, func(t *testing.T) {
			conn := connect(t)
			f, err := ask[domains.Facts](t, conn, domains.VerbDefine, domains.Definition{XML: fmt.Sprintf(offline, name)})
			if err != nil {
				t.Fatal(err)
			}
			want := domains.Facts{Name: name, UUID: "c7a5fdbd-edaf-9455-926a-d65c16db1809", State: "shut off", Persistent: true}
			if diff := cmp.Diff(want, f); diff != "" {
				t.Errorf("define: %s", diff)
			}
			d, err := ask[domains.Definition](t, conn, domains.VerbXML, domains.DomainRequest{Domain: name})
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range []string{`urn:diskhook:1`, `<source file='/guest/disk.img'/>`} {
				if !strings.Contains(d.XML, part) {
					t.Errorf("the stored XML lacks %s:\n%s", part, d.XML)
				}
			}
		})
	}
}

func TestErrorsHaveTheirKind(t *testing.T) {
	conn := connect(t)
	for name, tc := range map[string]struct {
		verb    string
		request any
		kind    *failure.Kind
		text    string
	}{
		"no domain":      {domains.VerbFacts, domains.DomainRequest{Domain: "nobody"}, failure.NotFound, "domain nobody: "},
		"no uuid":        {domains.VerbXML, domains.DomainRequest{Domain: "c7a5fdbd-edaf-9455-926a-d65c16db1800"}, failure.NotFound, "domain c7a5fdbd"},
		"newline":        {domains.VerbFacts, domains.DomainRequest{Domain: "a\nb"}, failure.NotFound, "domain a b: "},
		"malformed":      {domains.VerbDefine, domains.Definition{XML: "<domain"}, failure.Usage, "define the domain: "},
		"not its schema": {domains.VerbDefine, domains.Definition{XML: strings.Replace(fmt.Sprintf(offline, "x"), "<devices>", "<devices><nonsense/>", 1)}, failure.Usage, "define the domain: "},
		"bad request":    {domains.VerbFacts, 7, failure.Usage, "request"},
		"no support":     {domains.VerbBlockResize, domains.ResizeRequest{Domain: "test", Target: "vda", Size: 1}, failure.Precondition, "disk vda: resize: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ask[struct{}](t, conn, tc.verb, tc.request)
			if err == nil {
				t.Fatal("no error")
			}
			if got := failure.KindOf(err); got != tc.kind || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v (%v), want %v with %q", err, got, tc.kind, tc.text)
			}
		})
	}
}

// The program as diskhook calls it: one JSON object out, whatever happens.
func TestProgram(t *testing.T) {
	connect(t)
	for name, tc := range map[string]struct {
		args    []string
		request string
		code    int
		want    string
	}{
		"answer":      {[]string{"--connect", "test:///default", "facts"}, `{"domain":"test"}`, 0, `"name":"test"`},
		"error":       {[]string{"--connect", "test:///default", "facts"}, `{"domain":"nobody"}`, 1, `{"error":{"code":"not_found","message":"domain nobody: `},
		"no verb":     {[]string{"--connect", "test:///default", "destroy"}, `{}`, 1, `"code":"usage"`},
		"no daemon":   {[]string{"--connect", "qemu+unix:///system?socket=/nonexistent/sock", "list"}, `{}`, 1, `"code":"precondition"`},
		"no such uri": {[]string{"--connect", "nonsense:///", "list"}, `{}`, 1, `"code":"precondition"`},
		"usage":       {[]string{"--connect", "test:///default"}, ``, 2, ``},
		"late option": {[]string{"list", "--connect"}, ``, 2, ``},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(tc.args, strings.NewReader(tc.request), &stdout, &stderr)
			if code != tc.code || !strings.Contains(stdout.String(), tc.want) {
				t.Errorf("exit %d, stdout %s, stderr %s; want %d with %s", code, &stdout, &stderr, tc.code, tc.want)
			}
			if tc.code != 2 && (!json.Valid(stdout.Bytes()) || strings.Count(stdout.String(), "\n") != 1) {
				t.Errorf("not one line of JSON: %s", &stdout)
			}
		})
	}
}
