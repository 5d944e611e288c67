// SPDX-License-Identifier: Apache-2.0

package connector_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/managed/connector/connectortest"
)

// Passwords and keyrings are in files of mode 0600, and nowhere else.
func TestSecretsGoIntoPrivateFilesOnly(t *testing.T) {
	for name, tc := range map[string]struct{ document, file, canary string }{
		"iscsi": {chap, "etc/iscsi/nodes/iqn.2010-10.org.openstack:volume-1/10.0.0.5,3260", "canary #=1"},
		"rbd":   {image, "run/diskhook/managed/v1/keyring", "AQcanary=="},
	} {
		for _, broken := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				w := world(t)
				must(t, w.Change(func(s *connectortest.Storage) {
					for _, target := range s.ISCSI {
						target.Username, target.Password, target.Portals = "u", "canary #=1", target.Portals[:1]
						if broken {
							target.Password = "another"
						}
					}
					if broken {
						s.RBD["volumes/volume-1"] = connectortest.Image{Keyring: "another", ID: "abc"}
					}
				}))
				var log strings.Builder
				h := w.Host(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
				c := open(t, h, tc.document)
				a, err := c.Attach(t.Context())
				if (err != nil) != broken {
					t.Fatal(err)
				}
				said := log.String() + strings.Join(w.Lines(), "\n") + string(a.JSON) + " "
				if err != nil {
					said += err.Error() + failure.Line(err)
					var failed *command.Error
					if errors.As(err, &failed) {
						said += failed.Stderr
					}
					if !strings.Contains(said, "***") {
						t.Errorf("the program repeated no secret: %s", said)
					}
				}
				if strings.Contains(said, "canary") {
					t.Errorf("it is told: %s", said)
				}
				path := filepath.Join(w.Dir, tc.file)
				text, err := os.ReadFile(path)
				must(t, err)
				st, err := os.Stat(path)
				must(t, err)
				if !strings.Contains(string(text), tc.canary) || st.Mode().Perm() != 0o600 {
					t.Errorf("mode %v: %s", st.Mode(), text)
				}
				must(t, c.Detach(t.Context(), a, nil))
				if left := w.Left(); left != nil {
					t.Errorf("left: %v", left)
				}
			})
		}
	}
}

// A file may hold the secret; one that others can read is refused.
func TestSecretOfAFile(t *testing.T) {
	w := world(t)
	must(t, w.Change(func(s *connectortest.Storage) {
		for _, target := range s.ISCSI {
			target.Username, target.Password = "u", "from a file"
		}
	}))
	file := filepath.Join(w.Dir, "secret")
	must(t, os.WriteFile(file, []byte("from a file\n"), 0o644))
	c := open(t, host(w), strings.ReplaceAll(chap, `"auth_password":"canary #=1"`, `"auth_password_file":"`+file+`"`))
	if _, err := c.Attach(t.Context()); !errors.Is(err, failure.Precondition) || !strings.Contains(failure.HintOf(err), "chmod 600 "+file) {
		t.Errorf("%v; %s", err, failure.HintOf(err))
	}
	if left := w.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
	must(t, os.Chmod(file, 0o600))
	if _, err := c.Attach(t.Context()); err != nil {
		t.Error(err)
	}
}
