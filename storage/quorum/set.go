// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
)

// Set is the definition of a replica set. Sizes are bytes.
type Set struct {
	Schema string `json:"schema"` // "diskhook.quorum/v1"
	Name   string `json:"name"`
	UUID   string `json:"uuid"`
	Size   int64  `json:"size"` // of the disk, a multiple of 512

	// Threshold is how many replicas must agree on what is read, and take
	// what is written.
	Threshold int `json:"threshold"`
	// ReadPattern is Vote or FIFO.
	ReadPattern string `json:"read_pattern"`
	// AllowMinority admits what gives up the vote: a threshold of half of the
	// replicas or less, and FIFO. Somebody asked for it.
	AllowMinority bool `json:"allow_minority,omitempty"`
	// HangTimeout is after which time a silent replica is cut off; 0 is
	// [quorum] hang_timeout.
	HangTimeout host.Duration `json:"hang_timeout,omitempty"`

	Replicas []Replica `json:"replicas"`
	// NextID numbers the next replica: an id is never given twice.
	NextID int `json:"next_id"`
	// Source is the disk whose content the set holds, as long as it holds
	// nothing else; nil is a set of which only its content tells.
	Source *Source `json:"source,omitempty"`
	// User is the disk whose guest wrote to the set last; nil: none, or what it
	// wrote was given up.
	User *Use `json:"user,omitempty"`

	// Intent is the verb that is under way, nil when none is.
	Intent *Intent `json:"intent,omitempty"`
}

// The read patterns, in QEMU's words (QuorumReadPattern): all replicas are
// read and compared, or the first one that answers is believed.
const (
	Vote = "quorum"
	FIFO = "fifo"
)

const setSchema = "diskhook.quorum/v1"

// maxReplicas bounds a set. Every write goes to all of them.
const maxReplicas = 16

// Replica is one copy of the disk: a backing chain of its own.
type Replica struct {
	ID    string  `json:"id"`    // "r1"
	Chain []Layer `json:"chain"` // top first; only the top one is written to
	// Volume is VG/LV of a replica that is a logical volume: its mark is a tag.
	Volume string `json:"volume,omitempty"`
}

// Layer is one image.
type Layer struct {
	Type   string `json:"type"`             // File, Block or NBD
	Path   string `json:"path,omitempty"`   // of File and Block, absolute
	Format string `json:"format"`           // imagecheck.Raw or imagecheck.QCOW2
	Host   string `json:"host,omitempty"`   // of NBD over TCP
	Port   int    `json:"port,omitempty"`   // of NBD over TCP
	Socket string `json:"socket,omitempty"` // of NBD over a unix socket, absolute
	Export string `json:"export,omitempty"` // of NBD
}

// The types of layers, as libvirt names them but for NBD.
const (
	File  = "file"
	Block = "block"
	NBD   = "nbd"
)

// String names the layer in messages.
func (l Layer) String() string {
	switch {
	case l.Type != NBD:
		return l.Path
	case l.Socket != "":
		return "nbd+unix:///" + l.Export + "?socket=" + l.Socket
	}
	return "nbd://" + net.JoinHostPort(l.Host, strconv.Itoa(l.Port)) + "/" + l.Export
}

// Top is the layer that is written to.
func (r Replica) Top() Layer { return r.Chain[0] }

// String names the replica in messages.
func (r Replica) String() string { return "replica " + r.ID + " (" + r.Top().String() + ")" }

// reason is err in one line, without the name of the replica that it is about.
func (s *Set) reason(id string, err error) string {
	line := failure.OneLine(err.Error())
	r, ok := s.Replica(id)
	if !ok || len(r.Chain) == 0 {
		return line
	}
	for cut := true; cut; {
		line, cut = strings.CutPrefix(line, r.String()+": ")
	}
	return line
}

// Replica returns the replica called id.
func (s *Set) Replica(id string) (Replica, bool) {
	i := slices.IndexFunc(s.Replicas, func(r Replica) bool { return r.ID == id })
	if i < 0 {
		return Replica{}, false
	}
	return s.Replicas[i], true
}

// IDs are those of all replicas, in order.
func (s *Set) IDs() []string {
	ids := make([]string, len(s.Replicas))
	for i, r := range s.Replicas {
		ids[i] = r.ID
	}
	return ids
}

// String names the set in messages.
func (s *Set) String() string { return "replica set " + s.Name }

// Check says what is wrong with a definition, each fault in a line of its own.
// It looks at nothing but the definition. The error is a failure.Usage.
func (s *Set) Check() error {
	var faults []error
	wrong := func(format string, args ...any) {
		faults = append(faults, failure.New(failure.Usage, "replica set "+clip(s.Name)+": "+format, args...))
	}
	if err := checkName(s.Name); err != nil {
		faults = append(faults, err)
	}
	if !host.IsUUID(s.UUID) {
		wrong("uuid %q is not a uuid", clip(s.UUID))
	}
	if s.Size <= 0 || s.Size%sector != 0 || s.Size > imagecheck.DefaultMaxVirtualSize {
		wrong("a size of %d bytes is not one that a disk can have", s.Size)
	}
	s.checkVote(wrong)
	s.checkReplicas(wrong)
	return errors.Join(faults...)
}

const sector = 512

func (s *Set) checkVote(wrong func(string, ...any)) {
	n := len(s.Replicas)
	switch {
	case n < 2:
		wrong("%d replicas: at least 2 are needed", n)
	case n > maxReplicas:
		wrong("%d replicas: at most %d are possible", n, maxReplicas)
	}
	switch {
	case s.Threshold < 1:
		wrong("threshold %d: it must be at least 1", s.Threshold)
	case s.Threshold > n:
		wrong("threshold %d: there are only %d replicas", s.Threshold, n)
	case 2*s.Threshold <= n && !s.AllowMinority:
		wrong("threshold %d: two halves of %d replicas could both win; --allow-minority takes it all the same", s.Threshold, n)
	}
	switch {
	case s.ReadPattern != Vote && s.ReadPattern != FIFO:
		wrong("read pattern %q is neither %s nor %s", clip(s.ReadPattern), Vote, FIFO)
	case s.ReadPattern == FIFO && !s.AllowMinority:
		wrong("read pattern fifo believes one replica without a vote; --allow-minority takes it all the same")
	}
}

func (s *Set) checkReplicas(wrong func(string, ...any)) {
	ids, places := map[string]bool{}, map[string]string{}
	for _, r := range s.Replicas {
		n, ok := idNumber(r.ID)
		switch {
		case !ok:
			wrong("replica %q: an id is r and a number", clip(r.ID))
		case ids[r.ID]:
			wrong("replica %s is there twice", r.ID)
		case n >= s.NextID:
			wrong("replica %s: the next id is r%d", r.ID, s.NextID)
		}
		ids[r.ID] = true
		if err := r.check(); err != nil {
			wrong("replica %s: %w", clip(r.ID), err)
			continue
		}
		for _, l := range r.Chain {
			if other, twice := places[l.String()]; twice {
				wrong("replica %s: %s is also in replica %s", r.ID, l, other)
			}
			places[l.String()] = r.ID
		}
	}
}

// check looks at one replica's chain.
func (r Replica) check() error {
	if len(r.Chain) == 0 {
		return errors.New("it has no image")
	}
	if len(r.Chain) > imagecheck.MaxLayers {
		return fmt.Errorf("a chain of %d images, at most %d are possible", len(r.Chain), imagecheck.MaxLayers)
	}
	for i, l := range r.Chain {
		if err := l.check(); err != nil {
			return err
		}
		// What a header on a server says cannot be looked at before QEMU does.
		if l.Type == NBD && (l.Format != imagecheck.Raw || len(r.Chain) > 1) {
			return fmt.Errorf("%s: an nbd image is raw and has no backing file", l)
		}
		if l.Format == imagecheck.Raw && i != len(r.Chain)-1 {
			return fmt.Errorf("%s: a raw image has no backing file", l)
		}
	}
	if r.Volume == "" {
		return nil
	}
	if vg, lv, ok := strings.Cut(r.Volume, "/"); !ok || !host.LVMName(vg) || !host.LVMName(lv) {
		return fmt.Errorf("volume %q is not VG/LV", clip(r.Volume))
	}
	return nil
}

func (l Layer) check() error {
	if l.Format != imagecheck.Raw && l.Format != imagecheck.QCOW2 {
		return fmt.Errorf("%s: format %q is neither raw nor qcow2", clip(l.String()), clip(l.Format))
	}
	switch l.Type {
	case File, Block:
		if l.Host != "" || l.Socket != "" || l.Export != "" || l.Port != 0 {
			return fmt.Errorf("%s: a %s has no host, socket or export", clip(l.Path), l.Type)
		}
		return checkPath(l.Path)
	case NBD:
		return l.checkNBD()
	}
	return fmt.Errorf("type %q is none of %s, %s, %s", clip(l.Type), File, Block, NBD)
}

func (l Layer) checkNBD() error {
	switch {
	case l.Path != "":
		return errors.New("an nbd image has no path")
	case (l.Socket == "") == (l.Host == ""):
		return errors.New("an nbd image has either a host or a socket")
	case len(l.Export) > 255 || !printable(l.Export):
		return fmt.Errorf("export %q is not a name", clip(l.Export))
	case l.Socket != "" && l.Port != 0:
		return errors.New("a socket has no port")
	case l.Socket != "":
		return checkPath(l.Socket)
	case l.Port < 1 || l.Port > 65535:
		return fmt.Errorf("port %d is not a port", l.Port)
	case !hostName(l.Host):
		return fmt.Errorf("host %q is neither a name nor an address", clip(l.Host))
	}
	return nil
}

// checkPath takes clean absolute paths without control characters. A comma or
// a colon means nothing in the JSON that QEMU gets.
func checkPath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || len(path) > 4095 || !printable(path) {
		return fmt.Errorf("%q is not a clean absolute path", clip(path))
	}
	return nil
}

// maxName keeps the set's sockets within the 107 bytes of sun_path.
const maxName = 48

// checkName admits what may stand in a file, a unit and a socket's name.
func checkName(name string) error {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-' || r == '.'
	}
	bad := name == "" || len(name) > maxName || name[0] == '-' || name[0] == '.' ||
		strings.IndexFunc(name, func(r rune) bool { return !plain(r) }) >= 0
	if bad {
		return failure.New(failure.Usage, "replica set %q: a name is up to %d letters, digits, _, - or ., and begins with neither - nor .", clip(name), maxName)
	}
	return nil
}

// idNumber reads "r12". Ids are short, so that node names stay below QEMU's 32
// bytes.
func idNumber(id string) (int, bool) {
	digits, ok := strings.CutPrefix(id, "r")
	if !ok || len(digits) == 0 || len(digits) > 6 || digits[0] == '0' {
		return 0, false
	}
	for _, r := range digits {
		if r < '0' || r > '9' {
			return 0, false
		}
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil
}

func hostName(s string) bool {
	if net.ParseIP(s) != nil {
		return true
	}
	if s == "" || len(s) > 253 || s[0] == '-' || s[0] == '.' {
		return false
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.') {
			return false
		}
	}
	return true
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) < 0
}

// clip keeps what came from outside from filling a message.
func clip(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
