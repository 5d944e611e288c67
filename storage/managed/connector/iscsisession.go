// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// portal is an address of a target. The host is an IP address without
// brackets, in its canonical form, or a name.
type portal struct{ host, port string }

func (p portal) String() string { return net.JoinHostPort(p.host, p.port) }

const iscsiPort = "3260" // RFC 7143, 4.2.2

// parsePortal reads "10.0.0.5:3260", "[fd00::5]:3260", "name", each with or
// without the number of the portal group behind a comma.
func parsePortal(text string) (portal, error) {
	address, _, _ := strings.Cut(text, ",")
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = strings.Trim(address, "[]"), iscsiPort
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return portal{}, invalid("portal %q: not an address and a port", text)
	}
	ip := net.ParseIP(host)
	switch {
	case ip != nil:
		host = ip.String()
	case !word(host, ".-"):
		return portal{}, invalid("portal %q: not an address and a port", text)
	}
	return portal{host, port}, nil
}

// iscsiSession is a session that the kernel has.
type iscsiSession struct {
	id     string // N of /sys/class/iscsi_session/sessionN
	host   uint64 // SCSI host
	target string // SCSI target on that host, or "-"
	iqn    string
	portal portal
	state  string // LOGGED_IN, FAILED or FREE
}

// works refuses a session that has lost its connection, while open-iscsi tries
// to bring it back: whoever asks such a one for a LUN waits in the kernel until
// it gives up, and cannot be stopped.
func (s iscsiSession) works(t iscsiTarget) error {
	if s.state == "" || s.state == "LOGGED_IN" {
		return nil
	}
	err := failure.New(failure.Temporary, "target %s at %s: its session is %s", t.iqn, t.portal, s.state)
	return failure.Hint(err, "bring the portal back, or give the session up with `%s`", line("iscsiadm", t.node("--logout")...))
}

// has says whether a device, by its resolved directory in sysfs, is of the session.
func (s iscsiSession) has(dir string) bool { return strings.Contains(dir, "/session"+s.id+"/") }

// iscsiSessions reads /sys/class/iscsi_session, where a session of one
// connection, and Linux has no others, has connectionN:0.
func (h *Host) iscsiSessions() []iscsiSession {
	var all []iscsiSession
	for _, dir := range h.glob("sys/class/iscsi_session/session*") {
		s := iscsiSession{id: strings.TrimPrefix(filepath.Base(dir), "session"), iqn: attr(dir, "targetname"), state: attr(dir, "state")}
		connection := h.at("sys/class/iscsi_connection", "connection"+s.id+":0")
		p, err := parsePortal(net.JoinHostPort(strings.Trim(attr(connection, "persistent_address"), "[]"), attr(connection, "persistent_port")))
		resolved, err2 := filepath.EvalSymlinks(dir)
		if err != nil || err2 != nil || s.iqn == "" {
			continue // it is coming or going
		}
		s.portal = p
		// A host of an offload card has several sessions; each is a target.
		if s.target = "-"; attr(dir, "target_id") != "" {
			if id, err := strconv.ParseInt(attr(dir, "target_id"), 10, 32); err == nil && id >= 0 {
				s.target = strconv.FormatInt(id, 10)
			}
		}
		for _, element := range strings.Split(resolved, "/") {
			if n, ok := strings.CutPrefix(element, "host"); ok {
				if number, err := strconv.ParseUint(n, 10, 32); err == nil {
					s.host = number
					all = append(all, s)
				}
			}
		}
	}
	return all
}

func (h *Host) iscsiSession(t iscsiTarget) *iscsiSession {
	for _, s := range h.iscsiSessions() {
		if s.iqn == t.iqn && s.portal == t.portal {
			return &s
		}
	}
	return nil
}

// iscsiadm runs the program; the code also is a success.
func (h *Host) iscsiadm(ctx context.Context, also int, args ...string) error {
	_, err := h.Run.Run(ctx, command.Cmd{Name: "iscsiadm", Args: args, Timeout: loginTime})
	var failed *command.Error
	if errors.As(err, &failed) && failed.Code == also {
		return nil
	}
	return err
}

// node is a command on the record of a target at its portal.
func (t iscsiTarget) node(args ...string) []string {
	return append([]string{"-m", "node", "-T", t.iqn, "-p", t.portal.String()}, args...)
}

func newRecord() []string { return []string{"--interface", "default", "--op", "new"} }

// recordSettings: a dead portal would keep login busy for minutes by default.
func recordSettings() []string {
	return []string{
		"--op", "update", "-n", "node.startup", "-v", "manual", "-n", "node.session.scan", "-v", "manual",
		"-n", "node.session.initial_login_retry_max", "-v", "2", "-n", "node.conn[0].timeo.login_timeout", "-v", "15",
	}
}

// session logs in at the target, unless that has been done, and returns the session.
func (c *iscsi) session(ctx context.Context, t iscsiTarget, password string) (*iscsiSession, error) {
	if s := c.host.iscsiSession(t); s != nil {
		if err := s.works(t); err != nil {
			return nil, err
		}
		return s, nil
	}
	run := func(also int, args ...string) error {
		if err := c.host.iscsiadm(ctx, also, t.node(args...)...); err != nil {
			return fmt.Errorf("target %s at %s: %w", t.iqn, t.portal, err)
		}
		return nil
	}
	// A record that is there is of a session that is no more. iscsiadm would
	// keep a password of then, and fail at one that a power cut damaged.
	if err := c.host.dropRecord(t); err != nil {
		return nil, err
	}
	if err := run(0, newRecord()...); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("iscsi.recorded"); err != nil {
		return nil, err
	}
	if err := run(0, recordSettings()...); err != nil {
		return nil, err
	}
	if c.username != "" {
		if err := c.host.chap(t, c.username, password); err != nil {
			return nil, fmt.Errorf("target %s at %s: %w", t.iqn, t.portal, err)
		}
	}
	if err := failpoint.Hit("iscsi.configured"); err != nil {
		return nil, err
	}
	if err := run(iscsiSessionExists, "--login"); err != nil {
		var failed *command.Error
		if errors.As(err, &failed) && failed.Code == iscsiAuthFailed {
			err = failure.Hint(failure.Wrap(failure.Precondition, err), "check user and password of the volume, and that the target knows this host's initiator name")
		}
		return nil, err
	}
	if err := failpoint.Hit("iscsi.logged-in"); err != nil {
		return nil, err
	}
	var s *iscsiSession
	err := c.host.await(ctx, "the session", func() bool { s = c.host.iscsiSession(t); return s != nil })
	return s, err
}

func (c *iscsi) logout(ctx context.Context, s iscsiSession) error {
	if err := c.host.iscsiadm(ctx, iscsiNoRecords, iscsiTarget{s.portal, s.iqn, 0}.node("--logout")...); err != nil {
		return fmt.Errorf("target %s at %s: log out: %w", s.iqn, s.portal, err)
	}
	if err := failpoint.Hit("iscsi.logged-out"); err != nil {
		return err
	}
	return c.host.await(ctx, "the end of the session", func() bool { return c.host.iscsiSession(iscsiTarget{s.portal, s.iqn, 0}) == nil })
}

// chap writes user and password into open-iscsi's record of the node.
// iscsiadm takes a value in argv only, where every user of the host can read
// it. The record is a file with lines NAME = VALUE between two comments, mode
// 0600: nodes/IQN/HOST,PORT where the portal group is not known, else
// nodes/IQN/HOST,PORT,GROUP/IFACE. Tried with iscsiadm 2.1.8: it reads a value
// up to the end of the line, and keeps it when it writes the record anew.
func (h *Host) chap(t iscsiTarget, username, password string) error {
	if strings.ContainsAny(password, "\n\r\x00") {
		return invalid("data.auth_password: it has more than one line")
	}
	record, err := h.nodeRecord(t)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(record)
	if err != nil {
		return err
	}
	var lines []string
	for _, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
		name, _, _ := strings.Cut(line, " ")
		switch name {
		case "node.session.auth.authmethod", "node.session.auth.username", "node.session.auth.password":
			continue
		}
		if strings.HasPrefix(line, "# END RECORD") {
			lines = append(lines, "node.session.auth.authmethod = CHAP",
				"node.session.auth.username = "+username, "node.session.auth.password = "+password)
		}
		lines = append(lines, line)
	}
	if !strings.Contains(strings.Join(lines, "\n"), "authmethod = CHAP") {
		return failure.New(failure.Precondition, "%s: not a record that this program knows how to write", record)
	}
	return h.replaceRecord(t, record, strings.Join(lines, "\n")+"\n")
}

// replaceRecord puts text in the place of a record. iscsiadm takes every file
// next to records for one, and gives up on one that is not whole: the draft
// lies above that directory, and is on the disk before it gets its place.
func (h *Host) replaceRecord(t iscsiTarget, record, text string) error {
	draft := h.recordDraft(record, t)
	f, err := os.OpenFile(draft, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err := failure.Full(errors.Join(err, f.Sync(), f.Close())); err != nil {
		return fmt.Errorf("%s: write: %w", draft, err)
	}
	if err := failpoint.Hit("iscsi.drafted"); err != nil {
		return err
	}
	if err := os.Rename(draft, record); err != nil {
		return err
	}
	return atomicfile.Sync(filepath.Dir(record))
}

// recordDraft is always the same for a target, so that one that a crash left
// is found.
func (h *Host) recordDraft(record string, t iscsiTarget) string {
	top, _, _ := strings.Cut(record, "/nodes/"+t.iqn+"/")
	return filepath.Join(top, ".diskhook-"+t.iqn+","+t.portal.host+","+t.portal.port)
}

// dropRecord removes what a crash can have left of a record, and iscsiadm
// neither reads nor deletes.
func (h *Host) dropRecord(t iscsiTarget) error {
	for _, nodes := range recordPlaces() {
		base := h.at(nodes, t.iqn, t.portal.host+","+t.portal.port)
		for _, path := range append([]string{base, h.recordDraft(base, t)}, h.glob(filepath.Join(nodes, t.iqn, t.portal.host+","+t.portal.port+",*"))...) {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropTarget removes the target's directory where no record is left in it.
// Nobody may be making one.
func (h *Host) dropTarget(iqn string) {
	for _, nodes := range recordPlaces() {
		_ = os.Remove(h.at(nodes, iqn)) // it may have records for other portals
	}
}

// recordPlaces are where distributions keep the records.
func recordPlaces() []string { return []string{"etc/iscsi/nodes", "var/lib/iscsi/nodes"} }

// nodeRecord finds the record.
func (h *Host) nodeRecord(t iscsiTarget) (string, error) {
	for _, nodes := range recordPlaces() {
		base := h.at(nodes, t.iqn, t.portal.host+","+t.portal.port)
		for _, path := range append([]string{base}, h.glob(filepath.Join(nodes, t.iqn, t.portal.host+","+t.portal.port+",*", "default"))...) {
			st, err := os.Lstat(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil && st.IsDir() {
				path = filepath.Join(path, "default")
				st, err = os.Lstat(path)
			}
			if err == nil && st.Mode().IsRegular() {
				return path, nil
			}
		}
	}
	return "", failure.New(failure.Precondition, "target %s at %s: no record below /etc/iscsi/nodes or /var/lib/iscsi/nodes", t.iqn, t.portal)
}
