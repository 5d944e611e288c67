// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// iscsi is a LUN of an iSCSI target, by way of open-iscsi:
//
//	{"driver_volume_type": "iscsi", "data": {"target_portal": "10.0.0.5:3260", "target_iqn": "iqn.…", "target_lun": 1,
//	 "auth_method": "CHAP", "auth_username": "u", "auth_password": "p"}}
//
// With more than one path there are also target_portals, target_iqns and
// target_luns, of equal length. Without them the portal is asked for the
// others of the target; where that needs a password of its own it is not.
//
// Sessions scan for LUNs only on demand, so that the host sees no volume that
// was not asked for, and never start by themselves after a boot.
type iscsi struct {
	host     *Host
	info     Info
	targets  []iscsiTarget
	discover bool // there are no plural keys
	username string
}

// iscsiTarget is one path: a LUN of a target at a portal.
type iscsiTarget struct {
	portal portal
	iqn    string
	lun    uint64
}

const (
	iscsiadmTime = 30 * time.Second
	// loginTime is longer than the tries that login makes: twice 15 seconds.
	loginTime = 60 * time.Second
	maxPaths  = 32
)

// Exit codes of iscsiadm(8).
const (
	iscsiSessionExists = 15
	iscsiAuthFailed    = 24
	iscsiNoRecords     = 21
)

func newISCSI(h *Host, info Info) (Connector, error) {
	c := &iscsi{host: h, info: info}
	var err error
	if c.targets, err = iscsiTargets(info); err != nil {
		return nil, err
	}
	c.discover = len(info.list("target_portals")) == 0
	method, err1 := info.optional("auth_method")
	username, err2 := info.optional("auth_username")
	if err := errors.Join(err1, err2, info.checkSecret("auth_password")); err != nil {
		return nil, err
	}
	switch {
	case method == "" || strings.EqualFold(method, "none"):
	case !strings.EqualFold(method, "CHAP"):
		return nil, unsupported("data.auth_method %q", method)
	case username == "" || !info.hasSecret("auth_password"):
		return nil, invalid("data.auth_username or data.auth_password is missing, and auth_method is CHAP")
	case strings.ContainsAny(username, "\n\t"):
		return nil, invalid("data.auth_username: it has control characters")
	default:
		c.username = username
	}
	return c, nil
}

func iscsiTargets(info Info) ([]iscsiTarget, error) {
	mode, err := addressingMode(info)
	if err != nil {
		return nil, err
	}
	portals, err1 := info.texts("target_portals")
	iqns, err2 := info.texts("target_iqns")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	luns := info.list("target_luns")
	if len(portals) == 0 {
		if portals, err1 = info.texts("target_portal"); len(portals) != 1 || err1 != nil {
			return nil, invalid("data.target_portal is missing or not a string")
		}
		if iqns, err2 = info.texts("target_iqn"); len(iqns) != 1 || err2 != nil {
			return nil, invalid("data.target_iqn is missing or not a string")
		}
		if luns = info.list("target_lun"); len(luns) != 1 {
			return nil, invalid("data.target_lun is missing")
		}
	}
	if len(portals) != len(iqns) || len(portals) != len(luns) || len(portals) > maxPaths {
		return nil, invalid("data has %d target_portals, %d target_iqns, %d target_luns; they must be equally many, and at most %d", len(portals), len(iqns), len(luns), maxPaths)
	}
	targets := make([]iscsiTarget, len(portals))
	for i := range portals {
		p, err := parsePortal(portals[i])
		if err != nil {
			return nil, err
		}
		lun, err := number(luns[i])
		if err != nil || lun > 0x3fff {
			return nil, invalid("data: lun %v is not a number up to 16383", luns[i])
		}
		if !word(iqns[i], ".:-_") || len(iqns[i]) > 223 { // RFC 7143, 4.2.7.1
			return nil, invalid("data: %q is not the name of a target", iqns[i])
		}
		targets[i] = iscsiTarget{p, iqns[i], lunFor(lun, mode)}
	}
	return targets, nil
}

func (c *iscsi) Takes() []string {
	var all []string
	for _, t := range c.targets {
		all = append(all, fmt.Sprintf("iscsi:%s:%d", t.iqn, t.lun))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (c *iscsi) Shares() []string {
	var all []string
	for _, t := range c.targets {
		all = append(all, "iscsi:"+t.iqn)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (c *iscsi) Attach(ctx context.Context) (Attachment, error) {
	many := c.host.multipathd(ctx)
	if !many && c.host.NeedMultipath {
		return Attachment{}, failure.Hint(fmt.Errorf("%w: multipathd does not run", ErrNoMultipath), "run `systemctl enable --now multipathd`")
	}
	password, err := c.host.secret(c.info, "auth_password")
	if err != nil {
		return Attachment{}, err
	}
	targets := c.targets
	if many && c.discover {
		targets = c.discovered(ctx)
	}
	connected, err := c.connect(ctx, targets, password, many)
	if err != nil {
		return Attachment{}, err
	}
	if err := c.scan(connected); err != nil {
		return Attachment{}, err
	}
	if err := failpoint.Hit("iscsi.scanned"); err != nil {
		return Attachment{}, err
	}
	return c.host.attachSCSI(ctx, "the device of "+strings.Join(c.Takes(), ", "), c.patient(connected))
}

// discovered asks the portal where else the target is. That is for more paths
// only: without an answer there is the one that is known.
func (c *iscsi) discovered(ctx context.Context) []iscsiTarget {
	known := c.targets[0]
	if method, err := c.info.optional("discovery_auth_method"); err != nil || method != "" && !strings.EqualFold(method, "none") {
		c.host.Log.WarnContext(ctx, "the portal is not asked for more paths, as that takes a password", "portal", known.portal)
		return c.targets
	}
	result, err := c.host.Run.Run(ctx, command.Cmd{Name: "iscsiadm", Timeout: iscsiadmTime, Args: discovery(known.portal)})
	if err != nil {
		c.host.Log.WarnContext(ctx, "the portal does not tell of more paths", "portal", known.portal, "err", err)
		return c.targets
	}
	targets := []iscsiTarget{known}
	for _, line := range strings.Split(string(result.Stdout), "\n") {
		// "10.0.0.5:3260,1 iqn.…": a portal with its group, and a target
		fields := strings.Fields(line)
		if len(fields) != 2 || fields[1] != known.iqn || len(targets) == maxPaths {
			continue
		}
		if p, err := parsePortal(fields[0]); err == nil && !slices.ContainsFunc(targets, func(t iscsiTarget) bool { return t.portal == p }) {
			targets = append(targets, iscsiTarget{p, known.iqn, known.lun})
		}
	}
	return targets
}

// discovery asks a portal for its targets. nonpersistent: what else it serves
// is none of this host's records.
func discovery(p portal) []string {
	return []string{"-m", "discovery", "-t", "sendtargets", "-I", "default", "-p", p.String(), "-o", "nonpersistent"}
}

// connected is a path whose session is there.
type connected struct {
	session iscsiSession
	lun     uint64
}

// connect logs in at all targets side by side, and returns those where that
// worked. Without multipath the first that works is all there may be.
func (c *iscsi) connect(ctx context.Context, targets []iscsiTarget, password string, many bool) ([]connected, error) {
	sessions, failed := make([]*iscsiSession, len(targets)), make([]error, len(targets))
	if many {
		ctx, cancel := portion(ctx, 0, min(len(targets), 2)) // all at once
		defer cancel()
		var wait sync.WaitGroup
		for i, t := range targets {
			wait.Go(func() { sessions[i], failed[i] = c.session(ctx, t, password) })
		}
		wait.Wait()
	} else {
		for i, t := range targets {
			ctx, cancel := portion(ctx, i, len(targets))
			sessions[i], failed[i] = c.session(ctx, t, password)
			cancel()
			if failed[i] == nil {
				break
			}
		}
	}
	var all []connected
	for i, s := range sessions {
		switch {
		case s != nil:
			all = append(all, connected{*s, targets[i].lun})
		case failed[i] != nil:
			c.host.Log.WarnContext(ctx, "no path", "portal", targets[i].portal, "target", targets[i].iqn, "err", failed[i])
		}
	}
	if len(all) == 0 {
		return nil, errors.Join(failed...)
	}
	return all, nil
}

// scan looks for the LUN in each session. It is enough that it works in one.
func (c *iscsi) scan(all []connected) error {
	var failed []error
	for _, one := range all {
		if err := c.host.scan(one.session.host, channelOf(one.session), one.session.target, one.lun); err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) == len(all) {
		return errors.Join(failed...)
	}
	return nil
}

// channelOf is 0 where the target is known: iSCSI has no other.
func channelOf(s iscsiSession) string {
	if s.target == "-" {
		return "-"
	}
	return "0"
}

// patient looks for the devices: it waits for all paths for a while, then
// takes what is there, and scans again now and then, as a target may need time
// until it shows a volume that was mapped just now.
func (c *iscsi) patient(all []connected) func() []scsiPath {
	const scanAgain, goOn = 16, 40 // looks, of a quarter of a second each
	looks := 0
	return func() []scsiPath {
		looks++
		if looks%scanAgain == 0 {
			_ = c.scan(all) // the first scan worked; what is missing is noticed
		}
		paths := c.paths(all)
		if len(paths) < len(all) && looks < goOn {
			return nil
		}
		return paths
	}
}

// mine are the sessions that a path to the volume may go through.
func (c *iscsi) mine() []connected {
	var mine []connected
	for _, s := range c.host.iscsiSessions() {
		for _, t := range c.targets {
			if s.iqn == t.iqn && (c.discover || s.portal == t.portal) {
				mine = append(mine, connected{s, t.lun})
			}
		}
	}
	return mine
}

// paths are the devices that the volume has in these sessions.
func (c *iscsi) paths(all []connected) []scsiPath {
	return c.host.scsiDevices(func(address [4]uint64, dir string) bool {
		return slices.ContainsFunc(all, func(one connected) bool { return one.session.has(dir) && one.lun == address[3] })
	})
}

// Detach removes the devices, and each session that has no other, with its record.
func (c *iscsi) Detach(ctx context.Context, was Attachment, _ []Connector) error {
	mine := c.mine()
	paths := c.paths(mine)
	if err := c.host.detachSCSI(ctx, paths, was.MultipathID); err != nil {
		return err
	}
	var kept []iscsiSession
	for _, one := range mine {
		if slices.Contains(kept, one.session) {
			continue
		}
		others := c.host.scsiDevices(func(_ [4]uint64, dir string) bool { return one.session.has(dir) })
		if len(others) > 0 {
			kept = append(kept, one.session)
			continue
		}
		if err := c.logout(ctx, one.session); err != nil {
			return err
		}
	}
	return c.forget(ctx, kept)
}

// forgetting is the end of a target's record.
func (c *iscsi) forgetting(t iscsiTarget) []string {
	if c.discover { // all of the target's
		return []string{"-m", "node", "-T", t.iqn, "--op", "delete"}
	}
	return t.node("--op", "delete")
}

// orphans are the targets to which no session is left, each once.
func (c *iscsi) orphans(kept []iscsiSession) []iscsiTarget {
	var all []iscsiTarget
	for _, t := range c.targets {
		same := func(o iscsiTarget) bool { return o.iqn == t.iqn && (c.discover || o.portal == t.portal) }
		if !slices.ContainsFunc(all, same) && !slices.ContainsFunc(kept, func(s iscsiSession) bool { return same(iscsiTarget{s.portal, s.iqn, 0}) }) {
			all = append(all, t)
		}
	}
	return all
}

// forget deletes the records of targets to which no session is left. A crash
// may have left one that never had a session.
func (c *iscsi) forget(ctx context.Context, kept []iscsiSession) error {
	for _, t := range c.orphans(kept) {
		if err := c.host.iscsiadm(ctx, iscsiNoRecords, c.forgetting(t)...); err != nil {
			return fmt.Errorf("target %s: forget: %w", t.iqn, err)
		}
		if err := c.host.dropRecord(t); err != nil {
			return fmt.Errorf("target %s: forget: %w", t.iqn, err)
		}
		c.host.dropTarget(t.iqn)
		if err := failpoint.Hit("iscsi.forgotten"); err != nil {
			return err
		}
	}
	return nil
}
