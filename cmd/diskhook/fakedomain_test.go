// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/beevik/etree"
	"github.com/rogpeppe/go-internal/testscript"

	"diskhook/hooks/domains"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// fakeDomain is diskhook-domain over a directory: each domain is NAME.json, a
// domains.Facts with its definition. Like libvirt it writes XML in its own
// way, so nobody may count on getting the bytes back. The verbs themselves are
// tested against libvirt in cmd/diskhook-domain.
func fakeDomain(args []string, stdin io.Reader, stdout io.Writer) int {
	dir := os.Getenv("DISKHOOK_FAKE_LIBVIRT")
	answer, err := func() (any, error) {
		if len(args) != 3 || args[0] != "--connect" || args[1] != "fake:///system" {
			return nil, fmt.Errorf("unexpected arguments %q", args)
		}
		request, err := io.ReadAll(stdin)
		if err != nil {
			return nil, err
		}
		if err := logCall(dir, args[2]); err != nil {
			return nil, err
		}
		return fakeVerb(dir, args[2], request)
	}()
	if err != nil {
		var f domains.Failure
		f.Error.Message = err.Error()
		if k := failure.KindOf(err); k != nil {
			f.Error.Code = k.Code
		}
		_ = json.NewEncoder(stdout).Encode(f)
		return 1
	}
	_ = json.NewEncoder(stdout).Encode(answer)
	return 0
}

// logCall appends to ../shots/calls what was asked, for scripts to look at.
func logCall(dir, verb string) error {
	f, err := os.OpenFile(filepath.Join(dir, "../shots/calls"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, verb)
	return err
}

func fakeVerb(dir, verb string, request []byte) (any, error) {
	var r struct {
		Domain, XML any
		Target      string
		Size        uint64
	}
	if err := json.Unmarshal(request, &r); err != nil {
		return nil, err
	}
	switch verb {
	case domains.VerbVersion:
		v := domains.Version{URI: "fake:///system", Driver: "QEMU", Daemon: 9_000_000, Library: 9_000_000}
		if os.Getenv("DISKHOOK_FAKE_NEW") != "" {
			v.Daemon = 10_005_000 // says why a domain stopped
		}
		return v, nil
	case domains.VerbList:
		all, err := loadDomains(dir)
		return domains.List{Domains: all}, err
	case domains.VerbDefine:
		xml, err := asStored(r.XML.(string))
		if err != nil {
			return nil, err
		}
		return fakeDefine(dir, xml)
	}
	f, err := loadDomain(dir, r.Domain.(string))
	if err != nil {
		return nil, err
	}
	switch verb {
	case domains.VerbXML:
		return domains.Definition{XML: f.XML}, nil
	case domains.VerbFacts:
		f.XML = ""
		return f, nil
	case domains.VerbStart:
		if err := logCall(dir, "start "+f.Name); err != nil {
			return nil, err
		}
		if os.Getenv("DISKHOOK_FAKE_NO_START") == f.Name {
			return nil, failure.New(failure.Conflict, "domain %s: start: no bootable device", f.Name)
		}
		f.Active, f.State = true, "running"
		return f, storeDomain(dir, f)
	case domains.VerbBlockResize:
		return struct{}{}, logCall(dir, fmt.Sprintf("blockresize %s %s %d", f.Name, r.Target, r.Size))
	}
	return nil, fmt.Errorf("no verb %s", verb)
}

// asStored writes XML as another program would: other quotes.
func asStored(xml string) (string, error) {
	doc := etree.NewDocument()
	if err := doc.ReadFromString(xml); err != nil {
		return "", failure.Wrap(failure.Usage, err)
	}
	if os.Getenv("DISKHOOK_FAKE_DROPS") != "" { // a libvirt that loses our metadata
		for _, e := range doc.FindElements("/domain/metadata/disks") {
			e.Parent().RemoveChild(e)
		}
	}
	return doc.WriteToString()
}

func fakeDefine(dir, xml string) (domains.Facts, error) {
	doc, err := xmlrewrite.Parse([]byte(xml))
	if err != nil {
		return domains.Facts{}, err
	}
	f, err := loadDomain(dir, doc.UUID())
	if errors.Is(err, failure.NotFound) {
		f, err = domains.Facts{Name: doc.Name(), UUID: doc.UUID(), State: "shut off", Persistent: true}, nil
	}
	f.XML = xml
	if err != nil {
		return f, err
	}
	return f, storeDomain(dir, f)
}

func storeDomain(dir string, f domains.Facts) error {
	b, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, f.UUID+".json"), b, 0o600)
}

func loadDomains(dir string) ([]domains.Facts, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	all := []domains.Facts{}
	for _, path := range paths {
		var f domains.Facts
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &f)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

func loadDomain(dir, domain string) (domains.Facts, error) {
	all, err := loadDomains(dir)
	for _, f := range all {
		if f.Name == domain || f.UUID == domain {
			return f, err
		}
	}
	return domains.Facts{}, failure.New(failure.NotFound, "domain %s: Domain not found", domain)
}

// domain FILE…: define domains from XML, as an operator would.
func defineDomain(ts *testscript.TestScript, _ bool, args []string) {
	for _, file := range args {
		_, err := fakeDefine(ts.Getenv("DISKHOOK_FAKE_LIBVIRT"), ts.ReadFile(file))
		ts.Check(err)
	}
}

// facts NAME FIELD=JSON…: change what libvirt says about a domain.
func setFacts(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.Getenv("DISKHOOK_FAKE_LIBVIRT")
	f, err := loadDomain(dir, args[0])
	ts.Check(err)
	for _, kv := range args[1:] {
		field, value, _ := strings.Cut(kv, "=")
		ts.Check(json.Unmarshal([]byte(fmt.Sprintf("{%q: %s}", field, value)), &f))
	}
	ts.Check(storeDomain(dir, f))
}

// edit NAME OLD NEW: what virsh edit is for.
func editDomain(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.Getenv("DISKHOOK_FAKE_LIBVIRT")
	f, err := loadDomain(dir, args[0])
	ts.Check(err)
	// The first match is in the metadata, which an editor leaves alone.
	i := strings.LastIndex(f.XML, args[1])
	if i < 0 {
		ts.Fatalf("%s is not in %s", args[1], f.XML)
	}
	f.XML = f.XML[:i] + args[2] + f.XML[i+len(args[1]):]
	ts.Check(storeDomain(dir, f))
}
