// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/host"
)

// The folder of a set below /run/diskhook/quorum, mode 0711:
//
//	nbd.sock, vhost.sock   what a guest connects to, of the owner it was given
//	control.sock           for verbs, root only
//	status.json            Live
//	claim.json owner.json  whose set it is, and whose the socket is
//	daemon.json            the process that has the replicas open
//	attended.json          the generation that a guest's own QEMU has open
//	private/               0700: sockets between our own processes
func runDir(l host.Layout, name string) string { return filepath.Join(l.Run(), "quorum", name) }

// SocketPath is where the NBD export of a set is, which an XML may name before
// the set is ever served. The export's name is the set's.
func SocketPath(l host.Layout, name string) string { return filepath.Join(runDir(l, name), "nbd.sock") }

// VhostPath is where the vhost-user-blk socket of a set is.
func VhostPath(l host.Layout, name string) string {
	return filepath.Join(runDir(l, name), "vhost.sock")
}

// socketPath is the one of kind.
func socketPath(l host.Layout, name, kind string) string {
	if kind == VhostUser {
		return VhostPath(l, name)
	}
	return SocketPath(l, name)
}

func (s *Service) runFile(name, file string) string {
	return filepath.Join(runDir(s.Layout, name), file)
}

func (s *Service) private(name, file string) string {
	return filepath.Join(runDir(s.Layout, name), "private", file)
}

func (s *Service) makeRunDir(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	dir := runDir(s.Layout, name)
	return errors.Join(
		atomicfile.MkdirAll(s.Layout.Run(), 0o755), atomicfile.MkdirAll(filepath.Dir(dir), 0o711),
		atomicfile.MkdirAll(dir, 0o711), atomicfile.MkdirAll(filepath.Join(dir, "private"), 0o700))
}

// The kinds of endpoints.
const (
	NBDExport = "nbd"
	VhostUser = "vhost-user"
)

// Use is who uses a set: a disk of a domain.
type Use struct {
	Domain string `json:"domain"` // UUID
	Target string `json:"target"` // "vda"
	Name   string `json:"name"`   // of the domain, for messages
	// Kind is what the domain's XML names: NBDExport, which "" is too, or VhostUser.
	Kind string `json:"kind,omitempty"`
	// Key is by what the disk is found again whatever its target is; "" is its
	// target.
	Key string `json:"key,omitempty"`
	// Fingerprint is that of what the disk was before the set took its place, as
	// Fits returns it; "" where it is not known.
	Fingerprint string `json:"fingerprint,omitempty"`
}

func (u Use) same(other Use) bool { return u.Domain == other.Domain && u.Target == other.Target }

// isDisk says whether both are one disk, which may have changed its target.
func (u Use) isDisk(other Use) bool { return u.Domain == other.Domain && u.key() == other.key() }

func (u Use) key() string { return cmp.Or(u.Key, u.Target) }

func (u Use) kind() string {
	if u.Kind == "" {
		return NBDExport
	}
	return u.Kind
}

// String names the use in messages.
func (u Use) String() string { return "disk " + u.Target + " of domain " + u.domain() }

func (u Use) domain() string { return failure.OneLine(clip(cmp.Or(u.Name, u.Domain))) }

// Claim is who may use a set now, until it is released or the host reboots. A
// set without one is a failure.NotFound.
func (s *Service) Claim(name string) (Use, error) {
	var u Use
	if err := checkName(name); err != nil {
		return u, err
	}
	err := readRun(s.runFile(name, "claim.json"), &u)
	if errors.Is(err, fs.ErrNotExist) {
		return u, failure.New(failure.NotFound, "replica set %s: no domain uses it", name)
	}
	return u, err
}

// Owner is whose the socket is: that of QEMU's process. SELinux is a full
// context, "" where there is none.
type Owner struct {
	UID     int    `json:"uid"`
	GID     int    `json:"gid"`
	SELinux string `json:"selinux,omitempty"`
}

// Own gives a set's socket to owner, now and whenever it is made anew, until the
// set is released. libvirt tells the owner only at `start begin`, when the set
// is served already.
func (s *Service) Own(ctx context.Context, name string, owner Owner) error {
	if err := s.makeRunDir(name); err != nil {
		return err
	}
	b, err := json.Marshal(owner)
	if err != nil {
		return err
	}
	if err := atomicfile.WriteVolatile(s.runFile(name, "owner.json"), b, 0o600); err != nil {
		return fmt.Errorf("replica set %s: %w", name, err)
	}
	for _, kind := range []string{NBDExport, VhostUser} {
		err := s.own(name, socketPath(s.Layout, name, kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("replica set %s: %w", name, err)
		}
	}
	return nil
}

// own makes the socket at path root's, or that of who was named.
func (s *Service) own(name, path string) error {
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	var owner Owner
	err := readRun(s.runFile(name, "owner.json"), &owner)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.Lchown(path, owner.UID, owner.GID)
	}
	if err == nil && owner.SELinux != "" {
		err = unix.Lsetxattr(path, "security.selinux", append([]byte(owner.SELinux), 0), 0)
		if err != nil {
			err = fmt.Errorf("label %s: %w", path, err)
		}
	}
	return err
}

// readRun reads a file of the set's folder.
func readRun(path string, into any) error {
	b, err := readOwn(path, maxDefinition)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// The states of Live.
const (
	Starting = "starting"
	Serving  = "serving"
	Stopping = "stopping"
	Stopped  = "stopped"
	Failed   = "failed"
)

// Live is what the process that serves a set tells of it. It is a hint; nothing
// decides about data by it.
type Live struct {
	Schema     string        `json:"schema"` // "diskhook.quorum-live/v1"
	Set        string        `json:"set"`
	State      string        `json:"state"`
	PID        int           `json:"pid"` // of `quorum serve`
	Kind       string        `json:"kind"`
	Socket     string        `json:"socket"`
	Use        Use           `json:"use"`
	Generation uint64        `json:"generation"`
	Replicas   []LiveReplica `json:"replicas"`
	// Equalising: after an unclean end, what differs is being made equal by
	// majority, Done bytes of Total; Repaired bytes differed, and in Torn bytes
	// no majority was found.
	Equalising bool  `json:"equalising"`
	Done       int64 `json:"done"`
	Total      int64 `json:"total"`
	Repaired   int64 `json:"repaired"`
	Torn       int64 `json:"torn"`
	// Heard: what the domain's QEMU reports is heard. Of Inline.
	Heard bool `json:"heard,omitempty"`
	// Failures counts the requests that failed since no majority agreed.
	Failures int `json:"failures"`
	// Error, Code and Hint say why it Failed.
	Error   string    `json:"error,omitempty"`
	Code    string    `json:"code,omitempty"`
	Hint    string    `json:"hint,omitempty"`
	Updated time.Time `json:"updated"`
}

// The states of LiveReplica.
const (
	Voting    = "voting"
	Suspected = "suspect"
	OutOfSet  = "left out"
	InResync  = "resyncing"
)

// LiveReplica is one replica of a set that is served. Done of Total bytes are
// resynced.
type LiveReplica struct {
	ID    string `json:"id"`
	Path  string `json:"path"`
	State string `json:"state"`
	Why   string `json:"why,omitempty"`
	// Since is when a Suspected one lost its vote; ReplicaStatus.Out follows.
	Since time.Time `json:"since,omitzero"`
	// Again is when a resync that failed is tried again.
	Again time.Time `json:"again,omitzero"`
	Done  int64     `json:"done"`
	Total int64     `json:"total"`
}

const liveSchema = "diskhook.quorum-live/v1"

// Live reads what the serving process tells. A set that was not served since the
// host booted is a failure.NotFound.
func (s *Service) Live(name string) (Live, error) {
	var l Live
	if err := checkName(name); err != nil {
		return l, err
	}
	err := readRun(s.runFile(name, "status.json"), &l)
	if errors.Is(err, fs.ErrNotExist) {
		return l, failure.New(failure.NotFound, "replica set %s: it is not served", name)
	}
	return l, err
}
