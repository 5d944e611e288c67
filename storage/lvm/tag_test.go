// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseTags(t *testing.T) {
	for in, want := range map[string][]string{
		"":                nil, // not one empty tag
		"UPDATING":        {"UPDATING"},
		"UPDATING,VM_1":   {"UPDATING", "VM_1"},
		"UPDATING2,xUP/=": {"UPDATING2", "xUP/="},
	} {
		got, err := parseTags(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got)\n%s", in, diff)
		}
	}
	for _, in := range []string{",", "a,", ",a", "a,,b", "a b", "-a", "a,-b"} {
		if got, err := parseTags(in); err == nil {
			t.Errorf("%q is taken for %q", in, got)
		}
	}
}

func TestValidTag(t *testing.T) {
	for tag, want := range map[string]bool{
		"UPDATING": true, "VM_00000000-0000-0000-0000-000000000000": true, "a+b.c/d=e!f:g&h#i": true,
		strings.Repeat("x", 1024): true, strings.Repeat("x", 1025): false,
		"": false, "-x": false, "@x": false, "a,b": false, "a b": false, "é": false, "a\n": false, "a@b": false, "$(x)": false,
	} {
		if got := ValidTag(tag); got != want {
			t.Errorf("ValidTag(%.20q) = %v", tag, got)
		}
	}
}

func FuzzTags(f *testing.F) {
	for _, s := range []string{"", "UPDATING,VM_1", ",", "a,,b", "@x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tags, err := parseTags(s)
		if err != nil {
			return
		}
		if back := strings.Join(tags, ","); back != s {
			t.Errorf("%q became %q", s, back)
		}
		for _, tag := range tags {
			if !ValidTag(tag) {
				t.Errorf("%q yields %q", s, tag)
			}
		}
	})
}
