// SPDX-License-Identifier: Apache-2.0

package vdsm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/hooktest"
	"diskhook/hooks/vdsm"
	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
)

// told is connector_info as it must stand in the capabilities.
const told = `{"platform":"x86_64","os_type":"linux","ip":null,"host":"h1","multipath":true,"initiator":"iqn.1994-05.com.redhat:h1","do_local_attach":false,"nvme_native_multipath":false}`

// knowing is a host that knows its connector's properties, or fails to.
func knowing(t *testing.T, err error) (w *hooktest.World, asked *int) {
	w, _ = fake(t)
	asked = new(int)
	w.ConnectorInfo = func(ctx context.Context) (connector.Properties, error) {
		*asked++
		if _, limited := ctx.Deadline(); !limited {
			t.Error("asked without a limit of time")
		}
		return connector.Properties{Platform: "x86_64", OSType: "linux", Host: "h1", Multipath: true, Initiator: "iqn.1994-05.com.redhat:h1"}, err
	}
	return w, asked
}

// getCaps calls the point as VDSM does, without any VM, and returns the file.
func getCaps(t *testing.T, w *hooktest.World, content []byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"_hook_json": path}
	err := vdsm.Run(t.Context(), w.Host, vdsm.Call{Point: "after_get_caps", Lookup: func(name string) (string, bool) { v, ok := env[name]; return v, ok }})
	if err != nil {
		t.Errorf("it failed: %v", err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if rest, _ := os.ReadDir(filepath.Dir(path)); len(rest) != 1 {
		t.Errorf("left beside the file: %v", rest)
	}
	return after
}

func TestCapsGetConnectorInfo(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:           `{"connector_info": ` + told + `}`,
		`{"a": 1e400}`: `{"a": 1e400, "connector_info": ` + told + `}`,
		"{ \"hooks\" : {\"connector_info\": 1},\n\"x\":[\"\\u00e9\", null ] }\n": "{ \"hooks\" : {\"connector_info\": 1},\n\"x\":[\"\\u00e9\", null ] , \"connector_info\": " + told + "}\n",
	} {
		w, asked := knowing(t, nil)
		if diff := cmp.Diff(want, string(getCaps(t, w, []byte(text)))); diff != "" || *asked != 1 {
			t.Errorf("%s, asked %d times: %s", text, *asked, diff)
		}
		if strings.Contains(w.Log.String(), "WARN") {
			t.Errorf("logged %s", w.Log)
		}
	}
}

// TestCapsThatHaveIt: whoever told it first is believed, whatever it told.
func TestCapsThatHaveIt(t *testing.T) {
	for _, text := range []string{`{"connector_info": {"initiator": "iqn.x"}, "a": 1}`, `{"connector_info":null}`, `{"connector\u005finfo": {}}`} {
		w, asked := knowing(t, nil)
		if got := string(getCaps(t, w, []byte(text))); got != text || *asked != 0 || strings.Contains(w.Log.String(), "WARN") {
			t.Errorf("%s became %s, asked %d times, logged %s", text, got, *asked, w.Log)
		}
	}
}

// hostile are files that are left as they are, with a line in the log.
func hostile() map[string][]byte {
	return map[string][]byte{
		"empty":         {},
		"no object":     []byte(`["connector_info"]`),
		"a string":      []byte(`"{}"`),
		"null":          []byte("null"),
		"cut off":       []byte(`{"a": {"b"`),
		"two":           []byte(`{}{}`),
		"a key twice":   []byte(`{"a": 1, "a": 2}`),
		"not UTF-8":     []byte("{\"a\": \"\xff\"}"),
		"no JSON of Go": []byte(`{"a": NaN}`),
		"deep":          []byte(`{"a": ` + strings.Repeat("[", 1<<20) + strings.Repeat("]", 1<<20) + `}`),
		"deep objects":  []byte(strings.Repeat(`{"a":`, 1<<18) + "1" + strings.Repeat("}", 1<<18)),
		"huge":          []byte(`{"a": "` + strings.Repeat("x", 17<<20) + `"}`),
	}
}

func TestHostileCapsPass(t *testing.T) {
	for name, text := range hostile() {
		t.Run(name, func(t *testing.T) {
			w, asked := knowing(t, nil)
			if got := getCaps(t, w, text); !bytes.Equal(got, text) || *asked != 0 {
				t.Errorf("became %.80q, asked %d times", got, *asked)
			}
			lineLogged(t, w, "_hook_json")
		})
	}
}

// TestLargeCaps: many keys are an ordinary thing, on a host with much hardware.
func TestLargeCaps(t *testing.T) {
	many := map[string]string{}
	for i := range 100_000 {
		many[strings.Repeat("k", 1+i%20)+string(rune('a'+i%26))+strings.Repeat("0", i%7)] = strings.Repeat("v", 40)
	}
	text, err := json.Marshal(many)
	if err != nil {
		t.Fatal(err)
	}
	w, _ := knowing(t, nil)
	want := string(text[:len(text)-1]) + `, "connector_info": ` + told + "}"
	if got := getCaps(t, w, text); string(got) != want {
		t.Errorf("became %.80q…", got)
	}
}

func TestCapsWithoutAnAnswer(t *testing.T) {
	w, asked := knowing(t, failure.Hint(failure.New(failure.Precondition, "diskhook-helper: a password is required"), "look at sudoers"))
	const text = `{"a": 1}`
	if got := getCaps(t, w, []byte(text)); string(got) != text || *asked != 1 {
		t.Errorf("became %s, asked %d times", got, *asked)
	}
	lineLogged(t, w, "a password is required")
	if !strings.Contains(w.Log.String(), "look at sudoers") {
		t.Errorf("no way out: %s", w.Log)
	}
}

// TestCapsWithoutFile: nothing at all can be done, and nothing fails.
func TestCapsWithoutFile(t *testing.T) {
	for _, path := range []string{"", "relative", "/nonexistent/x", "/dev/zero", t.TempDir()} {
		w, asked := knowing(t, nil)
		err := vdsm.Run(t.Context(), w.Host, vdsm.Call{Point: "after_get_caps", Lookup: func(string) (string, bool) { return path, path != "" }})
		if err != nil || *asked != 0 {
			t.Errorf("%q: %v, asked %d times", path, err, *asked)
		}
		lineLogged(t, w, "_hook_json")
	}
}

// lineLogged is one line, a warning that has the word.
func lineLogged(t *testing.T, w *hooktest.World, word string) {
	t.Helper()
	if log := w.Log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "level=WARN") || !strings.Contains(log, word) || !strings.Contains(log, "point=after_get_caps") {
		t.Errorf("logged %.400q", log)
	}
}
