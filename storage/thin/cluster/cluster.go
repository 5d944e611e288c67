// SPDX-License-Identifier: Apache-2.0

// Package cluster is how a host knows the thin clusters that it may take part in:
// their definitions, /etc/diskhook/clusters.d/NAME.json.
//
// A definition says which volume group is whose cluster's, and is the same file on
// every host: a host finds itself in the cluster's map by its name. So a cluster
// comes to another host by copying the file. It is written once, by who makes the
// cluster, and read by every verb; what changes is on the shared volume group.
// One that somebody else than root may change, or that says what is not
// understood, is refused: it names the devices that root writes to.
package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/thin/layout"
)

const (
	schema = "diskhook.cluster/v1"
	most   = 1 << 20 // bytes that are read of a definition
	maxVG  = 127     // as lvm(8) has it
)

// Definition is what a host knows of a cluster before it looks at its disk.
type Definition struct {
	Schema string    `json:"schema"`
	Name   string    `json:"name"`
	UUID   uuid.UUID `json:"uuid"`
	// VG is the shared volume group. Dir is a directory of files in its place: to
	// look at a cluster that was copied, and for tests.
	VG  string `json:"vg,omitempty"`
	Dir string `json:"dir,omitempty"`
	// Capacity bounds the files of Dir together, in bytes.
	Capacity uint64 `json:"capacity,omitempty"`
	// Host is what this host is called in the cluster, if not as uname -n has it up
	// to the first dot.
	Host string `json:"host,omitempty"`
	// Membership configures who says which hosts are in the cluster.
	Membership json.RawMessage `json:"membership,omitempty"`
}

// Check says what is wrong with a definition.
func (d Definition) Check() error {
	switch {
	case d.Schema != schema:
		return fmt.Errorf("schema %q, and this diskhook knows %q", d.Schema, schema)
	case !layout.ValidName(d.Name):
		return fmt.Errorf("the name %q", d.Name)
	case d.UUID == uuid.Nil:
		return errors.New("no uuid")
	case (d.VG == "") == (d.Dir == ""):
		return errors.New("either vg or dir is needed")
	case d.VG != "" && !validVG(d.VG):
		return fmt.Errorf("the volume group %q", d.VG)
	case d.Dir != "" && (!filepath.IsAbs(d.Dir) || filepath.Clean(d.Dir) != d.Dir):
		return fmt.Errorf("the directory %q is no absolute path", d.Dir)
	case d.Host != "" && !layout.ValidName(d.Host):
		return fmt.Errorf("the host's name %q", d.Host)
	}
	return nil
}

// validVG follows lvm(8), "VALID NAMES".
func validVG(name string) bool {
	if len(name) > maxVG || name[0] == '-' || name == "." || name == ".." {
		return false
	}
	return !strings.ContainsFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("+_.-", c)
	})
}

// New is the definition of a cluster that is being made.
func New(name string) Definition {
	return Definition{Schema: schema, Name: name, UUID: uuid.New()}
}

// ThisHost is what this host is called in the cluster.
func (d Definition) ThisHost() (string, error) {
	if d.Host != "" {
		return d.Host, nil
	}
	name, err := os.Hostname()
	name, _, _ = strings.Cut(name, ".")
	if err == nil && !layout.ValidName(name) {
		err = failure.New(failure.Precondition, "cluster %s: this host cannot be called %q there", d.Name, name)
		err = failure.Hint(err, `add "host": "NAME" to its definition on this host`)
	}
	return name, err
}

func path(l host.Layout, name string) string {
	return filepath.Join(l.Definitions("clusters"), name+".json")
}

// Load reads one definition. A cluster that is not defined is a failure.NotFound, a
// definition that is not to be trusted a failure.Precondition.
func Load(l host.Layout, name string) (Definition, error) {
	if !layout.ValidName(name) {
		return Definition{}, failure.New(failure.Usage, "cluster %q: not a name of letters, digits, dot, _ and -", name)
	}
	b, err := readOwn(path(l, name))
	if errors.Is(err, fs.ErrNotExist) {
		err = failure.New(failure.NotFound, "cluster %s: it is not defined on this host", name)
		return Definition{}, failure.Hint(err, "copy %s from a host that knows it, or make it with `diskhook thin init-cluster`", path(l, name))
	}
	if err != nil {
		return Definition{}, fmt.Errorf("cluster %s: %w", name, err)
	}
	var d Definition
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.DisallowUnknownFields()
	if err = decoder.Decode(&d); err == nil {
		err = d.Check()
	}
	if _, more := decoder.Token(); err == nil && !errors.Is(more, io.EOF) {
		err = errors.New("something follows its end")
	}
	if err == nil && d.Name != name {
		err = fmt.Errorf("it is that of cluster %s", d.Name)
	}
	if err != nil {
		err = failure.New(failure.Precondition, "%s: not understood: %w", path(l, name), err)
		return Definition{}, failure.Hint(err, "copy the file from another host of the cluster")
	}
	return d, nil
}

func readOwn(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, failure.Denied(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.Mode().IsRegular() || st.Size() > most:
		return nil, failure.New(failure.Precondition, "%s: not a regular file of at most %d bytes", path, most)
	case ok && owner.Uid != 0 && int(owner.Uid) != os.Geteuid(), st.Mode().Perm()&0o022 != 0:
		err := failure.New(failure.Precondition, "%s: others than root may change it", path)
		return nil, failure.Hint(err, "look at what it says, then `chown root:root %s` and `chmod 600 %s`", path, path)
	}
	return io.ReadAll(io.LimitReader(f, most))
}

// List names the clusters that are defined, good definitions or not.
func List(l host.Layout) ([]string, error) {
	entries, err := os.ReadDir(l.Definitions("clusters"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("clusters: %w", failure.Denied(err))
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok && layout.ValidName(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// Choose reads the definition of the cluster that is meant: the one that is named,
// else the one that the configuration names, else the only one.
func Choose(l host.Layout, config host.Thin, name string) (Definition, error) {
	if name == "" {
		name = config.Cluster
	}
	if name != "" {
		return Load(l, name)
	}
	names, err := List(l)
	switch {
	case err != nil:
		return Definition{}, err
	case len(names) == 1:
		return Load(l, names[0])
	case len(names) == 0:
		err := failure.New(failure.NotFound, "no cluster is defined on this host")
		return Definition{}, failure.Hint(err, "copy the definition from a host that knows it to %s, or make one with `diskhook thin init-cluster`", l.Definitions("clusters"))
	}
	err = failure.New(failure.Usage, "which cluster? %s are defined", strings.Join(names, ", "))
	return Definition{}, failure.Hint(err, "name it with --cluster, or set `cluster` in section [thin] of %s", l.Config())
}

// Save writes a definition. One of the same name with another UUID is a
// failure.Conflict: it leads to another cluster.
func Save(l host.Layout, d Definition) error {
	if err := d.Check(); err != nil {
		return failure.New(failure.Usage, "cluster %q: %w", d.Name, err)
	}
	known, err := Load(l, d.Name)
	switch {
	case err == nil && known.UUID != d.UUID:
		err := failure.New(failure.Conflict, "cluster %s: another one of this name is defined on this host, %s", d.Name, known.UUID)
		return failure.Hint(err, "give it another name, or move %s away", path(l, d.Name))
	case err != nil && !errors.Is(err, failure.NotFound):
		return err
	}
	if err := atomicfile.MkdirAll(l.Definitions("clusters"), 0o700); err != nil {
		return fmt.Errorf("cluster %s: %w", d.Name, err)
	}
	return atomicfile.WriteJSON(path(l, d.Name), d, 0o600)
}

// Forget takes a definition away; one that is not there is fine.
func Forget(l host.Layout, name string) error { return atomicfile.Remove(path(l, name)) }
