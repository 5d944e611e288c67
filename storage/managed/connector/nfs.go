// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// nfs is a raw file on an export:
//
//	{"driver_volume_type": "nfs", "data": {"export": "host:/x", "name": "volume-…", "options": "-o vers=4"}}
//
// Each export is mounted once, below a directory of ours: mount_point_base,
// which the other side may send, is not looked at.
type nfs struct {
	host    *Host
	export  string
	name    string
	options string
}

// mountTime bounds mount and umount; the server may be dead.
const mountTime = 60 * time.Second

// answerTime is how long a server may take to say something of a file.
const answerTime = 10 * time.Second

func newNFS(h *Host, info Info) (Connector, error) {
	n := &nfs{host: h}
	var options, format string
	var err1, err2, err3, err4 error
	n.export, err1 = info.text("export")
	n.name, err2 = info.text("name")
	options, err3 = info.optional("options")
	format, err4 = info.optional("format")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	server, path, ok := cutExport(n.export)
	switch {
	case !ok || !word(strings.Trim(server, "[]"), ".-:_") || !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "\n\t\\"):
		return nil, invalid("data.export: %q is not SERVER:/PATH", n.export)
	case !word(n.name, "._-"):
		return nil, invalid("data.name: %q is not the name of a file", n.name)
	case format != "" && format != "raw":
		return nil, unsupported("a file of format %q", format)
	}
	n.options, err1 = mountOptions(options)
	return n, err1
}

// cutExport splits SERVER:/PATH; the server may be an IPv6 address in brackets.
func cutExport(export string) (server, path string, ok bool) {
	if end := strings.Index(export, "]:"); strings.HasPrefix(export, "[") && end > 0 {
		return export[:end+1], export[end+2:], true
	}
	return strings.Cut(export, ":")
}

// mountOptions takes "-o a,b=c" as Cinder writes it (nfs(5)), and adds that
// nothing on the export is a program or a device to this host.
func mountOptions(text string) (string, error) {
	text = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(text), "-o"))
	options := []string{"nosuid", "nodev", "noexec"}
	for _, option := range strings.Split(text, ",") {
		switch {
		case text == "":
			continue
		case !word(option, "_=.:-"):
			return "", invalid("data.options: %q is not a mount option", option)
		case slices.Contains([]string{"suid", "dev", "exec", "user", "users", "owner", "group"}, option):
			return "", unsupported("the mount option %q", option)
		}
		options = append(options, option)
	}
	return strings.Join(options, ","), nil
}

func (n *nfs) Takes() []string  { return []string{"nfs:" + n.export + "/" + n.name} }
func (n *nfs) Shares() []string { return []string{"nfs:" + n.export} }

// mountPoint is the same for all volumes of the export.
func (n *nfs) mountPoint() string {
	sum := sha256.Sum256([]byte(n.export))
	return filepath.Join(n.host.Mounts, hex.EncodeToString(sum[:16]))
}

func (n *nfs) mounting() []string {
	return []string{"-t", "nfs", "-o", n.options, "--", n.export, n.mountPoint()}
}

// shared says whether another volume is on the export.
func (n *nfs) shared(others []Connector) bool {
	return slices.ContainsFunc(others, func(other Connector) bool {
		o, ok := other.(*nfs)
		return ok && o.export == n.export
	})
}

func (n *nfs) Attach(ctx context.Context) (Attachment, error) {
	at := n.mountPoint()
	mounted, err := n.mounted()
	if err != nil {
		return Attachment{}, err
	}
	if !mounted {
		if err := atomicfile.MkdirAll(at, 0o711); err != nil {
			return Attachment{}, err
		}
		if _, err := n.host.Run.Run(ctx, command.Cmd{Name: "mount", Args: n.mounting(), Timeout: mountTime}); err != nil {
			return Attachment{}, fmt.Errorf("export %s: mount: %w", n.export, err)
		}
	}
	if err := failpoint.Hit("nfs.mounted"); err != nil {
		return Attachment{}, err
	}
	path := filepath.Join(at, n.name)
	// The server decides what is there, and whether it answers.
	st, err := command.Abandon(ctx, func() (fs.FileInfo, error) { return os.Lstat(path) })
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Attachment{}, failure.New(failure.NotFound, "export %s: no file %s", n.export, n.name)
	case err != nil:
		return Attachment{}, fmt.Errorf("export %s: %w", n.export, err)
	case !st.Mode().IsRegular():
		return Attachment{}, failure.New(failure.Precondition, "export %s: %s is not a regular file", n.export, n.name)
	}
	body, err := json.Marshal(map[string]string{"type": "file", "path": path})
	return Attachment{Path: path, JSON: body, Identity: Identity{Size: st.Size()}}, err
}

// Detach unmounts the export once no other volume is on it.
func (n *nfs) Detach(ctx context.Context, _ Attachment, others []Connector) error {
	mounted, err := n.mounted()
	if err == nil && mounted {
		err = n.unused(ctx)
	}
	shared := n.shared(others)
	if errors.Is(err, command.ErrNoAnswer) && !shared {
		err = nil // umount finds out
	}
	if err != nil || shared {
		return err
	}
	at := n.mountPoint()
	if mounted {
		_, err := n.host.Run.Run(ctx, command.Cmd{Name: "umount", Args: []string{"--", at}, Timeout: mountTime})
		if err != nil && strings.Contains(err.Error(), "busy") {
			return failure.Hint(failure.New(failure.Conflict, "export %s: %w: %w", n.export, ErrInUse, err), "see who uses it with `fuser -vm %s`", at)
		}
		if err != nil {
			return fmt.Errorf("export %s: unmount: %w", n.export, err)
		}
	}
	if err := failpoint.Hit("nfs.unmounted"); err != nil {
		return err
	}
	if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unused is Host.unused for the file. Where the server does not answer, that is
// command.ErrNoAnswer.
func (n *nfs) unused(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	_, err := command.Abandon(ctx, func() (struct{}, error) {
		return struct{}{}, n.host.unused(ctx, filepath.Join(n.mountPoint(), n.name))
	})
	if err != nil {
		return fmt.Errorf("export %s: %w", n.export, err)
	}
	return nil
}

// mounted looks into mountinfo (proc(5)): the fifth field is the mount point.
// Something else mounted there is refused, as is the wrong export.
func (n *nfs) mounted() (bool, error) {
	table, err := os.ReadFile(n.host.at("proc/self/mountinfo"))
	if err != nil {
		return false, err
	}
	found := false
	for _, line := range strings.Split(string(table), "\n") {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) < 2 || fields[4] != n.mountPoint() {
			continue
		}
		source := strings.NewReplacer(`\040`, " ", `\134`, `\`).Replace(kind[1])
		if !strings.HasPrefix(kind[0], "nfs") || source != n.export {
			return false, failure.New(failure.Conflict, "%s: %s of type %s is mounted there, not %s", n.mountPoint(), source, kind[0], n.export)
		}
		found = true
	}
	return found, nil
}
