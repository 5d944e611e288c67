// SPDX-License-Identifier: Apache-2.0

// Package contrib tests the files that diskhook installs beside its programs.
package contrib

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"diskhook/storage/host"
)

// TestExampleConfigurationIsTheDefaults uncomments every key of the example
// but the rule, and gets the configuration of a host without a file.
func TestExampleConfigurationIsTheDefaults(t *testing.T) {
	example, err := os.ReadFile("diskhook.toml")
	if err != nil {
		t.Fatal(err)
	}
	text, rule, found := strings.Cut(uncomment(string(example)), "[[rule]]")
	if !found {
		t.Fatal("the example has no rule")
	}

	layout := host.Layout{Root: t.TempDir()}
	got := load(t, layout, text)
	want := host.Defaults(host.Layout{})
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the example differs from the defaults (-default +example):\n%s", diff)
	}

	got = load(t, layout, "[[rule]]"+rule)
	if len(got.Rules) != 1 || got.Rules[0].Binding == "" || got.Rules[0].Name == "" || got.Rules[0].Target == "" || got.Rules[0].Path == "" {
		t.Errorf("the example's rule sets not every key: %+v", got.Rules)
	}
}

// TestExampleConfigurationIsComplete finds every key of the defaults in it.
func TestExampleConfigurationIsComplete(t *testing.T) {
	example, err := os.ReadFile("diskhook.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys(reflect.TypeFor[host.Config]()) {
		if !regexp.MustCompile(`(?m)^#` + key + ` =`).Match(example) {
			t.Errorf("key %s is missing", key)
		}
	}
}

// uncomment makes settings of the lines "#key = value"; prose begins with "# ".
func uncomment(text string) string {
	return regexp.MustCompile(`(?m)^#(\S|  )`).ReplaceAllString(text, "$1")
}

// keys are the names of a section's settings, as the toml tags have them.
func keys(section reflect.Type) []string {
	var names []string
	for _, field := range reflect.VisibleFields(section) {
		kind := field.Type
		if kind.Kind() == reflect.Slice {
			kind = kind.Elem()
		}
		if kind.Kind() == reflect.Struct {
			names = append(names, keys(kind)...)
		} else {
			names = append(names, field.Tag.Get("toml"))
		}
	}
	return names
}

func load(t *testing.T, layout host.Layout, text string) host.Config {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(layout.Config()), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(layout.Config(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	config, err := host.Load(layout)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return config
}
