// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// adapter has an external program do the work, with VDSM's contract for
// managedvolume-helper (doc/managed-volume-adapters.md): the verb is the only
// argument, JSON comes on stdin and goes to stdout, and the code is 0.
//
//	attach  {"connection_info": {…}}                                  →  the attachment
//	detach  {"vol_id", "connection_info", "path", "attachment", "multipath_id"}  →  {}
//
// What the volume is, and what else uses it, only the program knows.
type adapter struct {
	host    *Host
	info    Info
	program string
}

const (
	adapterPrefix = "managedvolume-helper-"
	// adapterDir is where VDSM looks for them, below the root.
	adapterDir = "usr/libexec/vdsm"
	// adapterTime is what a program may take; os-brick rescans for half a minute.
	adapterTime = 5 * time.Minute
	// adapterAnswer bounds its answer in bytes.
	adapterAnswer = 1 << 20
)

func newAdapter(h *Host, info Info) (Connector, error) {
	name := adapterPrefix + info.Adapter
	program := h.at(adapterDir, name)
	for _, path := range h.Adapters {
		if filepath.Base(path) == name {
			program = path
		}
	}
	st, err := os.Stat(program)
	switch {
	case err != nil:
		err = failure.New(failure.Precondition, "adapter %q: %w: %w", info.Adapter, ErrAdapter, err)
		return nil, failure.Hint(err, "install it there, or name its path in `adapters` of [managed] in diskhook.toml")
	case !st.Mode().IsRegular() || st.Mode()&0o111 == 0 || st.Mode()&0o022 != 0 || !trusted(st):
		err = failure.New(failure.Precondition, "adapter %q: %w: %s: not a program that only root can write", info.Adapter, ErrAdapter, program)
		return nil, failure.Hint(err, "run `chown root: %[1]s && chmod 755 %[1]s`", program)
	}
	return &adapter{h, info, program}, nil
}

// trusted says that root owns the file, or whoever runs us.
func trusted(st fs.FileInfo) bool {
	owner, ok := st.Sys().(*syscall.Stat_t)
	return ok && (owner.Uid == 0 || int(owner.Uid) == os.Geteuid())
}

// Takes is the connection itself: what is behind it is the program's affair.
func (a *adapter) Takes() []string {
	return []string{"adapter:" + a.info.Adapter + ":" + a.info.Digest()}
}

func (a *adapter) Shares() []string { return []string{"adapter:" + a.info.Adapter} }

func (a *adapter) Attach(ctx context.Context) (Attachment, error) {
	connection, err := a.connection()
	if err != nil {
		return Attachment{}, err
	}
	answer, err := a.run(ctx, "attach", map[string]any{"connection_info": connection})
	if err != nil {
		return Attachment{}, err
	}
	if err := failpoint.Hit("adapter.attached"); err != nil {
		return Attachment{}, err
	}
	var said struct {
		Path        string `json:"path"`
		MultipathID string `json:"multipath_id"`
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return Attachment{}, a.failed("attach", errors.New("its answer is not a JSON object with a path"))
	}
	path, err := a.path(said.Path, said.MultipathID)
	if err != nil {
		return Attachment{}, err
	}
	if err := a.host.await(ctx, path, func() bool { return exists(path) }); err != nil {
		return Attachment{}, a.failed("attach", err)
	}
	identity, err := a.host.Look(path)
	if err != nil {
		return Attachment{}, a.failed("attach", err)
	}
	return Attachment{Path: path, MultipathID: said.MultipathID, JSON: answer, Identity: identity}, nil
}

// path is VDSM's rule for what a domain names: the multipath map of SCSI
// volumes, the name of an RBD image, else what the program says.
func (a *adapter) path(said, multipath string) (string, error) {
	switch a.info.Type {
	case "iscsi", "fibre_channel":
		if multipath == "" {
			return "", fmt.Errorf("adapter %q: %w", a.info.Adapter, ErrNoMultipath)
		}
		if !word(multipath, "_-.:+") {
			return "", a.failed("attach", fmt.Errorf("multipath_id %q is no name", multipath))
		}
		return a.host.at("dev/mapper", multipath), nil
	case "rbd":
		image, err := parseImage(a.info)
		if err != nil {
			return "", err
		}
		return a.host.at("dev/rbd", image.spec()), nil
	}
	if !filepath.IsAbs(said) || filepath.Clean(said) != said || strings.ContainsAny(said, "\n\t") {
		return "", a.failed("attach", fmt.Errorf("path %q is not a clean absolute one", said))
	}
	return said, nil
}

// unused refuses to have a device taken away that somebody has open. Some
// programs do not look.
func (a *adapter) unused(ctx context.Context, was Attachment) error {
	if was.Path == "" {
		return nil
	}
	return a.host.unusedPath(ctx, was.Path)
}

func (a *adapter) Detach(ctx context.Context, was Attachment, _ []Connector) error {
	if err := a.unused(ctx, was); err != nil {
		return err
	}
	connection, err := a.connection()
	if err != nil {
		return err
	}
	row := map[string]any{
		"vol_id": a.info.volume, "connection_info": connection,
		"path": orNull(was.Path), "attachment": nil, "multipath_id": orNull(was.MultipathID),
	}
	if len(was.JSON) > 0 {
		row["attachment"] = was.JSON
	}
	if _, err := a.run(ctx, "detach", row); err != nil {
		return err
	}
	return failpoint.Hit("adapter.detached")
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// connection is the document with the secrets of files filled in.
func (a *adapter) connection() (json.RawMessage, error) {
	var doc map[string]any
	if err := decode(a.info.raw, &doc); err != nil {
		return nil, err
	}
	data := maps.Clone(a.info.Data)
	for key := range a.info.Data {
		base, isFile := strings.CutSuffix(key, fileSuffix)
		if !isFile || !isSecret(base) {
			continue
		}
		secret, err := a.host.secret(a.info, base)
		if err != nil {
			return nil, err
		}
		delete(data, key)
		data[base] = secret
	}
	doc["data"] = data
	return json.Marshal(doc)
}

func (a *adapter) run(ctx context.Context, verb string, request any) (json.RawMessage, error) {
	stdin, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	result, err := a.host.Run.Run(ctx, command.Cmd{
		Name: a.program, Args: []string{verb}, Stdin: bytes.NewReader(stdin), Timeout: adapterTime,
	})
	if err != nil {
		return nil, a.failed(verb, err)
	}
	answer := bytes.TrimSpace(result.Stdout)
	var object map[string]json.RawMessage
	if len(answer) > adapterAnswer || json.Unmarshal(answer, &object) != nil || object == nil {
		return nil, a.failed(verb, errors.New("its answer is not a JSON object"))
	}
	return answer, nil
}

func (a *adapter) failed(verb string, err error) error {
	return fmt.Errorf("adapter %q: %s: %w: %w", a.info.Adapter, verb, ErrAdapter, err)
}
