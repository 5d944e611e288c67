// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "diskhook/xmlrewrite"
)

// seed gives the fuzzer every fixture and every short text of the tables.
func seed(f *testing.F, add func([]byte)) {
	files, _ := filepath.Glob(filepath.Join(fixtures, "*.xml"))
	if len(files) == 0 {
		f.Fatal("no fixtures")
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		add(b)
	}
	for _, c := range append(texts, stricter...) {
		if len(c.text) < 1000 {
			add([]byte(c.text))
		}
	}
}

func FuzzParse(f *testing.F) {
	seed(f, func(b []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, text []byte) {
		given := bytes.Clone(text)
		doc, err := Parse(text)
		if !bytes.Equal(given, text) {
			t.Fatal("Parse wrote to its argument")
		}
		if err != nil {
			if doc != nil || bytes.ContainsAny([]byte(err.Error()), "\r\n") || len(err.Error()) > 400 {
				t.Fatalf("%v, %q", doc, err)
			}
			return
		}
		// What we take, the strict reader of the standard library takes too.
		for dec := xml.NewDecoder(bytes.NewReader(text)); ; {
			if _, err := dec.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("encoding/xml: %v", err)
			}
		}
		doc.Name()
		doc.UUID()
		_, _ = doc.Metadata()
		doc.VDSM()
		checkNoOp(t, doc, text)
		if out, err := Apply(doc, SetMetadata{allKinds}); err == nil {
			m, err := parse(t, out.Bytes()).Metadata()
			if err != nil || !cmp.Equal(m.Disks, allKinds) {
				t.Fatalf("metadata read back: %v %v", m, err)
			}
		}
	})
}

func FuzzRewriteLocal(f *testing.F) {
	seed(f, func(b []byte) { f.Add(b, "/run/diskhook/disks/x/vda", "", "", true) })
	f.Add([]byte("<disk><source/><target dev='a'/></disk>"), "/&#10;<'\"\t\n", "qcow2", "unsafe", false)
	f.Fuzz(func(t *testing.T, text []byte, path, format, cache string, block bool) {
		doc, err := Parse(text)
		if err != nil {
			return
		}
		for i, d := range doc.Disks() {
			l := LocalDisk{Target: d.Target, Path: path, Block: block, Format: format, Cache: cache}
			out, err := Apply(doc, l)
			if !bytes.Equal(doc.Bytes(), text) {
				t.Fatal("Apply changed its argument")
			}
			if err != nil {
				continue
			}
			again, err := Parse(out.Bytes())
			if err != nil {
				t.Fatalf("the result is not read: %v\n%s", err, out.Bytes())
			}
			if again.Name() != doc.Name() || again.UUID() != doc.UUID() {
				t.Fatal("name or uuid changed")
			}
			before, after := doc.Disks(), again.Disks()
			if len(before) != len(after) {
				t.Fatalf("%d disks became %d", len(before), len(after))
			}
			got := after[i]
			if got.Source.Path() != path || got.Source.StartupPolicy != "" || got.Chain != nil || got.Terminated || got.Driver.Type != orElse(format, "raw") {
				t.Fatalf("disk %s is %+v", d.Target, got)
			}
			// All other disks, and all else of this one, read as before.
			got.Source, got.Chain, got.Terminated, got.Type = before[i].Source, before[i].Chain, before[i].Terminated, before[i].Type
			got.Driver = before[i].Driver
			if diff := cmp.Diff(before, after); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
