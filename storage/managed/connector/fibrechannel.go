// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// fibreChannel is a LUN of Fibre Channel targets, which the HBAs have logged
// in to by themselves:
//
//	{"driver_volume_type": "fibre_channel", "data": {"target_wwn": ["500a…", …], "target_lun": 1, "addressing_mode": "SAM2"}}
//
// or with target_wwns and target_luns, of equal length.
type fibreChannel struct {
	host    *Host
	targets []fcTarget
	any     bool // scan all targets where the target is not seen
}

type fcTarget struct {
	wwpn string // 16 hexadecimal digits, lower case
	lun  uint64
}

func newFibreChannel(h *Host, info Info) (Connector, error) {
	mode, err := addressingMode(info)
	if err != nil {
		return nil, err
	}
	key, lunKey := "target_wwns", "target_luns"
	if !info.has(key) {
		key, lunKey = "target_wwn", "target_lun"
	}
	wwpns, err := info.texts(key)
	if err != nil {
		return nil, err
	}
	luns := info.list(lunKey)
	switch {
	case len(wwpns) == 0 || len(wwpns) > maxPaths:
		return nil, invalid("data.%s is missing or has more than %d", key, maxPaths)
	case len(luns) == 1:
		luns = slices.Repeat(luns, len(wwpns))
	case len(luns) != len(wwpns):
		return nil, invalid("data.%s has %d for %d targets", lunKey, len(luns), len(wwpns))
	}
	f := &fibreChannel{host: h, any: info.flag("enable_wildcard_scan")}
	for i, wwpn := range wwpns {
		wwpn = normalWWN(wwpn)
		if _, err := strconv.ParseUint(wwpn, 16, 64); err != nil || len(wwpn) != 16 {
			return nil, invalid("data.%s: %q is not a port name of 16 hexadecimal digits", key, wwpns[i])
		}
		lun, err := number(luns[i])
		if err != nil || lun > 0x3fff {
			return nil, invalid("data.%s: %v is not a number up to 16383", lunKey, luns[i])
		}
		f.targets = append(f.targets, fcTarget{wwpn, lunFor(lun, mode)})
	}
	return f, nil
}

// normalWWN takes "0x500A…" and "50:0a:…", too.
func normalWWN(s string) string {
	return strings.TrimPrefix(strings.ReplaceAll(strings.ToLower(s), ":", ""), "0x")
}

func (f *fibreChannel) Takes() []string {
	var all []string
	for _, t := range f.targets {
		all = append(all, fmt.Sprintf("fc:%s:%d", t.wwpn, t.lun))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Shares is nothing: a scan for a LUN touches no other.
func (f *fibreChannel) Shares() []string { return nil }

func (f *fibreChannel) Attach(ctx context.Context) (Attachment, error) {
	if err := f.scan(); err != nil {
		return Attachment{}, err
	}
	if err := failpoint.Hit("fc.scanned"); err != nil {
		return Attachment{}, err
	}
	const scanAgain = 16 // looks
	looks := 0
	return f.host.attachSCSI(ctx, "the device of "+strings.Join(f.Takes(), ", "), func() []scsiPath {
		if looks++; looks%scanAgain == 0 {
			_ = f.scan() // the first one worked; what is missing is noticed
		}
		return f.paths()
	})
}

// hbas are the SCSI hosts of Fibre Channel that have a link.
func (h *Host) hbas() []string {
	var all []string
	for _, dir := range h.glob("sys/class/fc_host/host*") {
		if attr(dir, "port_state") == "Online" {
			all = append(all, strings.TrimPrefix(filepath.Base(dir), "host"))
		}
	}
	return all
}

// seen is a target port as one HBA sees it.
type seen struct {
	host, channel, target uint64
	wwpn                  string
}

// ports reads /sys/class/fc_transport/targetH:C:T/port_name.
func (f *fibreChannel) ports() []seen {
	var all []seen
	for _, dir := range f.host.glob("sys/class/fc_transport/target*") {
		address, ok := parseAddress(strings.TrimPrefix(filepath.Base(dir), "target") + ":0")
		if ok {
			all = append(all, seen{address[0], address[1], address[2], normalWWN(attr(dir, "port_name"))})
		}
	}
	return all
}

// scans are the writes to sysfs that look for the volume.
func (f *fibreChannel) scans() ([]fcScan, error) {
	hbas := f.host.hbas()
	if len(hbas) == 0 {
		return nil, failure.New(failure.Precondition, "no Fibre Channel port of this host is online")
	}
	ports := f.ports()
	var all []fcScan
	for _, hba := range hbas {
		host, err := strconv.ParseUint(hba, 10, 32)
		if err != nil {
			continue
		}
		for _, t := range f.targets {
			found := false
			for _, p := range ports {
				if p.host == host && p.wwpn == t.wwpn {
					found = true
					all = append(all, fcScan{host, strconv.FormatUint(p.channel, 10), strconv.FormatUint(p.target, 10), t.lun})
				}
			}
			if !found && f.any {
				all = append(all, fcScan{host, "-", "-", t.lun})
			}
		}
	}
	if len(all) == 0 {
		err := failure.New(failure.Temporary, "none of the targets of %s is seen by a port of this host", strings.Join(f.Takes(), ", "))
		return nil, failure.Hint(err, "check the zoning: `grep . /sys/class/fc_remote_ports/*/port_name`")
	}
	return all, nil
}

// fcScan is one look for a LUN; "-" is any channel or target.
type fcScan struct {
	host            uint64
	channel, target string
	lun             uint64
}

// scan looks for the volume. It is enough that one look works.
func (f *fibreChannel) scan() error {
	all, err := f.scans()
	if err != nil {
		return err
	}
	var failed []error
	for _, s := range all {
		if err := f.host.scan(s.host, s.channel, s.target, s.lun); err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) == len(all) {
		return errors.Join(failed...)
	}
	return nil
}

func (f *fibreChannel) paths() []scsiPath {
	ports := f.ports()
	return f.host.scsiDevices(func(address [4]uint64, _ string) bool {
		for _, p := range ports {
			if p.host == address[0] && p.channel == address[1] && p.target == address[2] &&
				slices.Contains(f.targets, fcTarget{p.wwpn, address[3]}) {
				return true
			}
		}
		return false
	})
}

// Detach removes the devices; the HBAs stay logged in.
func (f *fibreChannel) Detach(ctx context.Context, was Attachment, _ []Connector) error {
	return f.host.detachSCSI(ctx, f.paths(), was.MultipathID)
}
