// SPDX-License-Identifier: Apache-2.0

package bindings_test

import (
	"os"
	"strings"
	"testing"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

func TestMain(m *testing.M) { os.Exit(hooktest.Main(m)) }

func parseDoc(t testing.TB, xml []byte) *xmlrewrite.Document {
	t.Helper()
	doc, err := xmlrewrite.Parse(xml)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func mustParse(t testing.TB, text string, from bindings.Spelling) []bindings.Binding {
	t.Helper()
	b, err := bindings.Parse("--bind", text, from)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// refused checks that err is of the kind, that its line has every word, and
// that it names a way out.
func refused(t testing.TB, err error, kind *failure.Kind, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("not refused")
	}
	if got := failure.KindOf(err); got != kind {
		t.Errorf("kind %v, want %v: %v", got, kind, err)
	}
	line := failure.Line(err)
	for _, word := range words {
		if !strings.Contains(line, word) {
			t.Errorf("line %q lacks %q", line, word)
		}
	}
	if failure.HintOf(err) == "" {
		t.Errorf("no way out: %q", line)
	}
}
