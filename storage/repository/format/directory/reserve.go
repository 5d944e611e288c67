// SPDX-License-Identifier: Apache-2.0

package directory

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/repository/format"
)

const (
	reserveFolder = "reserve"
	// spares are the files in it. A removal takes one or two at a time.
	spares = 8
	// spareSize is what a document fits, and a file system has as its block.
	spareSize = 4096
	// takenPrefix is that of a spare which somebody is writing to.
	takenPrefix = ".taken-"
	// takenFor is how long one may be taken before who did that is dead: it takes
	// moments. If he lives, his write fails when it is to be seen, and changes nothing.
	takenFor = time.Hour
)

// WriteReserved implements format.Documents. Where the file system is full the document is
// written into a spare file, whose block is there already and which takes the document's
// name then: nobody else can have the block in between. Where the file system writes
// elsewhere in any case, the spare is given up and its room taken.
func (p *Place) WriteReserved(ctx context.Context, kind format.Kind, id string, data []byte, fence format.Fence) error {
	err := p.Write(ctx, kind, id, data, fence)
	if !errors.Is(err, failure.NoSpace) {
		return err
	}
	path, wrong := p.path(kind, id)
	if wrong != nil {
		return wrong
	}
	defer p.refill() // what the new document replaces has room for another
	for errors.Is(err, failure.NoSpace) {
		spare := p.takeSpare()
		if spare == "" {
			return err
		}
		if err = atomicfile.WriteInto(spare, path, data, fence); err == nil {
			return nil
		}
		if errors.Is(err, failure.NoSpace) {
			_ = os.Remove(spare)
			err = p.Write(ctx, kind, id, data, fence)
			continue
		}
		_ = os.Rename(spare, filepath.Join(filepath.Dir(spare), strings.TrimPrefix(filepath.Base(spare), takenPrefix)))
	}
	return err
}

// GiveUpSpare makes room for a block of a full file system; it says whether there was
// something to give up.
func (p *Place) GiveUpSpare() bool {
	spare := p.takeSpare()
	if spare == "" {
		return false
	}
	p.spent.Store(true)
	return os.Remove(spare) == nil
}

// takeSpare has a spare for its own; "": there is none.
func (p *Place) takeSpare() string {
	dir := filepath.Join(p.Root, reserveFolder)
	for _, name := range p.spareNames() {
		now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}} // where the files are
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, name), now, 0)
		taken := filepath.Join(dir, takenPrefix+name)
		if os.Rename(filepath.Join(dir, name), taken) == nil {
			p.spent.Store(true)
			return taken
		}
	}
	return ""
}

func (p *Place) spareNames() []string {
	entries, err := os.ReadDir(filepath.Join(p.Root, reserveFolder))
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if host.IsUUID(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names
}

// deserted removes the spares that somebody had taken who died.
func (p *Place) deserted() {
	dir := filepath.Join(p.Root, reserveFolder)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		name, taken := strings.CutPrefix(e.Name(), takenPrefix)
		if st, err := e.Info(); taken && host.IsUUID(name) && err == nil && time.Since(st.ModTime()) > takenFor {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// refill makes the spares that are missing, as many as there is room for: that is no
// failure of what was asked for.
func (p *Place) refill() {
	p.deserted()
	missing := spares - len(p.spareNames())
	if missing <= 0 {
		p.spent.Store(false)
		return
	}
	dir := filepath.Join(p.Root, reserveFolder)
	if err := atomicfile.MkdirAll(dir, 0o711); err != nil {
		return
	}
	content := bytes.Repeat([]byte("spare "), spareSize)[:spareSize] // zeros would take no room everywhere
	for range missing {
		path := filepath.Join(dir, uuid.NewString())
		if err := atomicfile.Write(path, content, 0o600); err != nil {
			return
		}
	}
	p.spent.Store(false)
}
