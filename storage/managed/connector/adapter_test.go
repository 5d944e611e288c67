// SPDX-License-Identifier: Apache-2.0

package connector_test

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/connector/connectortest"
)

const adapted = `{"driver_volume_type":"lightos","adapter":"lightos","scan_attempts":2,"data":{"uuid":"u1","auth_password":"canary"}}`

// adapter installs a program that keeps its input and answers as told.
func adapter(t *testing.T, w *connectortest.World, script string) {
	t.Helper()
	dir := filepath.Join(w.Dir, "usr/libexec/vdsm")
	must(t, os.MkdirAll(dir, 0o755))
	text := "#!/bin/sh\ncd " + w.Dir + "\ncat >stdin.$1\n" + script
	must(t, os.WriteFile(filepath.Join(dir, "managedvolume-helper-lightos"), []byte(text), 0o755))
}

func device(t *testing.T, w *connectortest.World, name string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(w.Dir, "sys/class/block", name), 0o755))
	must(t, os.WriteFile(filepath.Join(w.Dir, "sys/class/block", name, "size"), []byte("2048\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(w.Dir, "dev", name), nil, 0o600))
}

func sent(t *testing.T, w *connectortest.World, verb string) any {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.Dir, "stdin."+verb))
	must(t, err)
	var v any
	must(t, json.Unmarshal(b, &v))
	return v
}

func parsed(t *testing.T, text string) any {
	t.Helper()
	var v any
	must(t, json.Unmarshal([]byte(text), &v))
	return v
}

// An adapter gets what VDSM gives it, on stdin.
func TestAdapter(t *testing.T) {
	w := world(t)
	device(t, w, "nvme7n1")
	path := filepath.Join(w.Dir, "dev/nvme7n1")
	adapter(t, w, `case $1 in attach) echo '{"path": "`+path+`", "type": "block"}';; detach) echo '{}';; esac`)
	c := open(t, host(w), adapted)
	a, err := c.Attach(t.Context())
	must(t, err)
	if a.Path != path || string(a.JSON) != `{"path": "`+path+`", "type": "block"}` || a.Identity.Size != 2048*512 {
		t.Errorf("%+v", a)
	}
	if diff := cmp.Diff(parsed(t, `{"connection_info":`+adapted+`}`), sent(t, w, "attach")); diff != "" {
		t.Error(diff)
	}
	must(t, c.Detach(t.Context(), a, nil))
	if diff := cmp.Diff(parsed(t, `{"vol_id":"v1","connection_info":`+adapted+`,"path":"`+path+`","attachment":`+string(a.JSON)+`,"multipath_id":null}`), sent(t, w, "detach")); diff != "" {
		t.Error(diff)
	}
	must(t, c.Detach(t.Context(), connector.Attachment{}, nil)) // of a row that a crash left
	if diff := cmp.Diff(parsed(t, `{"vol_id":"v1","connection_info":`+adapted+`,"path":null,"attachment":null,"multipath_id":null}`), sent(t, w, "detach")); diff != "" {
		t.Error(diff)
	}
	program := "/usr/libexec/vdsm/managedvolume-helper-lightos "
	if diff := cmp.Diff([]string{program + "attach", program + "detach", program + "detach"}, w.Lines()); diff != "" {
		t.Error(diff)
	}
}

// The path of SCSI volumes and of RBD images follows VDSM's rule.
func TestAdapterPaths(t *testing.T) {
	for document, want := range map[string]string{
		strings.ReplaceAll(adapted, `"driver_volume_type":"lightos"`, `"driver_volume_type":"iscsi"`): "/dev/mapper/2002",
		`{"driver_volume_type":"rbd","adapter":"lightos","data":{"name":"pool/image"}}`:               "/dev/rbd/pool/image",
	} {
		w := world(t)
		device(t, w, "dm-25")
		must(t, os.Symlink("../dm-25", filepath.Join(w.Dir, "dev/mapper/2002")))
		must(t, os.MkdirAll(filepath.Join(w.Dir, "dev/rbd/pool"), 0o755))
		must(t, os.Symlink("../../dm-25", filepath.Join(w.Dir, "dev/rbd/pool/image")))
		adapter(t, w, `echo '{"path": "/dev/dm-25", "scsi_wwn": "2002", "type": "block", "multipath_id": "2002"}'`)
		a, err := open(t, host(w), document).Attach(t.Context())
		must(t, err)
		if got := strings.TrimPrefix(a.Path, w.Dir); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// An adapter that fails or answers nonsense is told of, but no secret is.
func TestAdapterFails(t *testing.T) {
	for name, tc := range map[string]struct {
		script string
		want   error
		says   string
	}{
		"code":          {`cat stdin.attach >&2; exit 3`, connector.ErrAdapter, "exited 3"},
		"not JSON":      {`echo attached`, connector.ErrAdapter, "not a JSON object"},
		"an array":      {`echo '[]'`, connector.ErrAdapter, "not a JSON object"},
		"no path":       {`echo '{"type": "block"}'`, connector.ErrAdapter, `path ""`},
		"relative path": {`echo '{"path": "dev/x"}'`, connector.ErrAdapter, `path "dev/x"`},
		"nothing there": {`echo '{"path": "/dev/never-there"}'`, connector.ErrAdapter, "not there after"},
	} {
		t.Run(name, func(t *testing.T) {
			w := world(t)
			adapter(t, w, tc.script)
			var log strings.Builder
			h := w.Host(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
			_, err := open(t, h, adapted).Attach(t.Context())
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v", err)
			}
			said := log.String() + err.Error() + strings.Join(w.Lines(), " ")
			var failed *command.Error
			if errors.As(err, &failed) {
				said += failed.Stderr
				if !strings.Contains(said, "***") {
					t.Error("the program repeated no secret")
				}
			}
			if strings.Contains(said, "canary") {
				t.Errorf("it is told: %s", said)
			}
		})
	}
	w := world(t)
	adapter(t, w, "")
	program := filepath.Join(w.Dir, "usr/libexec/vdsm/managedvolume-helper-lightos")
	info, err := connector.ParseInfo([]byte(adapted))
	must(t, err)
	refused := func(what string) {
		t.Helper()
		if _, err := host(w).Open("v1", info); !errors.Is(err, connector.ErrAdapter) || !errors.Is(err, failure.Precondition) || !strings.Contains(failure.HintOf(err), "chown root: "+program) {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, os.Chmod(program, 0o777))
	refused("a program that everybody can write")
	if os.Geteuid() == 0 {
		must(t, errors.Join(os.Chmod(program, 0o755), os.Chown(program, 65534, -1)))
		refused("somebody else's program")
	}
}

// A program is not run while somebody has the device open that it would take away.
func TestAdapterWhoseDeviceIsOpen(t *testing.T) {
	w := world(t)
	device(t, w, "nvme7n1")
	adapter(t, w, `echo '{"path": "`+w.Dir+`/dev/nvme7n1"}'`)
	c := open(t, host(w), adapted)
	a, err := c.Attach(t.Context())
	must(t, err)
	must(t, w.Change(func(s *connectortest.Storage) { s.Open = []string{"/dev/nvme7n1"} }))
	if err := c.Detach(t.Context(), a, nil); !errors.Is(err, connector.ErrInUse) {
		t.Errorf("%v", err)
	}
	if _, err := c.ExplainDetach(t.Context(), a, nil); !errors.Is(err, connector.ErrInUse) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(w.Dir + "/stdin.detach"); err == nil {
		t.Error("it was run")
	}
}

// A configured program goes before the one in VDSM's directory.
func TestConfiguredAdapter(t *testing.T) {
	w := world(t)
	device(t, w, "sdz")
	adapter(t, w, `exit 1`)
	program := filepath.Join(w.Dir, "opt/managedvolume-helper-lightos")
	must(t, os.MkdirAll(filepath.Dir(program), 0o755))
	must(t, os.WriteFile(program, []byte("#!/bin/sh\ncat >/dev/null\necho '{\"path\": \""+w.Dir+"/dev/sdz\"}'\n"), 0o755))
	h := host(w)
	h.Adapters = []string{program}
	if _, err := open(t, h, adapted).Attach(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLocal(t *testing.T) {
	w := world(t)
	device(t, w, "drbd1000")
	c := open(t, host(w), localDev)
	a, err := c.Attach(t.Context())
	must(t, err)
	if got := strings.ReplaceAll(string(a.JSON), w.Dir, ""); got != `{"path":"/dev/drbd1000","type":"local"}` || a.Identity.Size != 1<<20 {
		t.Errorf("%s %+v", got, a)
	}
	must(t, c.Detach(t.Context(), a, nil))
	if _, err := os.Stat(a.Path); err != nil || w.Lines() != nil {
		t.Errorf("%v, ran %v", err, w.Lines())
	}
}
