// SPDX-License-Identifier: Apache-2.0

package connectortest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"diskhook/storage/command"
)

// flags reads "-x value" and "--long value"; a flag without a value has "".
func flags(args []string) map[string]string {
	all := map[string]string{}
	for i, arg := range args {
		if strings.HasPrefix(arg, "-") {
			all[arg] = ""
			if i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
				all[arg] = args[i+1]
			}
		}
	}
	return all
}

func iscsiadm(w *World, s *Storage, cmd command.Cmd) (string, string, int) {
	f := flags(cmd.Args)
	iqn, portal := f["-T"], f["-p"]
	if f["-m"] == "discovery" {
		var out strings.Builder
		for iqn, t := range s.ISCSI {
			if !slices.Contains(t.Portals, portal) {
				continue
			}
			for _, p := range t.Portals {
				fmt.Fprintf(&out, "%s,1 %s\n", p, iqn)
			}
		}
		return out.String(), "", 0
	}
	host, port, _ := net.SplitHostPort(portal)
	record := filepath.Join("etc/iscsi/nodes", iqn, host+","+port)
	_, login := f["--login"]
	_, logout := f["--logout"]
	damaged := w.has(record) && !strings.Contains(w.attr(record), "# END RECORD")
	switch op := f["--op"]; {
	case op == "new" && damaged:
		return "", "iscsiadm: Error while adding record: encountered iSCSI database failure", 6
	case damaged:
		return "", "iscsiadm: No records found", 21
	case op == "new":
		w.need(w.write(record, "# BEGIN RECORD 2.1.8\nnode.name = "+iqn+"\nnode.session.auth.authmethod = None\n# END RECORD"))
	case op == "delete" && portal == "":
		if len(w.glob("etc/iscsi/nodes/"+iqn+"/*")) == 0 {
			return "", "iscsiadm: No records found", 21
		}
		w.remove("etc/iscsi/nodes/" + iqn)
	case !w.has(record):
		return "", "iscsiadm: No records found", 21
	case op == "update":
	case op == "delete":
		w.remove(record)
	case login:
		return w.login(s, iqn, portal, record)
	case logout:
		return w.logout(iqn, portal)
	default:
		return "", "iscsiadm: unknown call", 7
	}
	return "", "", 0
}

func (w *World) session(iqn, portal string) string {
	for _, dir := range w.glob("sys/class/iscsi_session/*") {
		id := strings.TrimPrefix(filepath.Base(dir), "session")
		c := "sys/class/iscsi_connection/connection" + id + ":0/"
		if w.attr(w.rel(dir)+"/targetname") == iqn && net.JoinHostPort(w.attr(c+"persistent_address"), w.attr(c+"persistent_port")) == portal {
			return id
		}
	}
	return ""
}

func (w *World) login(s *Storage, iqn, portal, record string) (string, string, int) {
	t := s.ISCSI[iqn]
	text := w.attr(record)
	switch {
	case w.session(iqn, portal) != "":
		return "", "iscsiadm: session exists", 15
	case t == nil || !slices.Contains(t.Portals, portal) || slices.Contains(t.Dead, portal):
		return "", "iscsiadm: Could not login to [" + portal + "]: connection timed out", 8
	case t.Password != "" && (!strings.Contains(text, "auth.password = "+t.Password+"\n") || !strings.Contains(text, "auth.username = "+t.Username+"\n")):
		// It repeats what it was given, as a careless program would.
		return "", "iscsiadm: login rejected: " + strings.ReplaceAll(text, "\n", " "), 24
	}
	id := 1 + slices.Index(t.Portals, portal) // logins go side by side
	for w.has(fmt.Sprintf("sys/class/iscsi_session/session%d", id)) {
		id++
	}
	host, port, _ := net.SplitHostPort(portal)
	base := fmt.Sprintf("sys/devices/platform/host%d/session%d/iscsi_session/session%d", id+2, id, id)
	w.need(errors.Join(w.write(base+"/targetname", iqn), w.write(base+"/target_id", "0")))
	w.symlink(base, fmt.Sprintf("sys/class/iscsi_session/session%d", id))
	c := fmt.Sprintf("sys/class/iscsi_connection/connection%d:0/", id)
	w.need(w.write(c+"persistent_address", host))
	w.need(w.write(c+"persistent_port", port))
	w.need(w.write(fmt.Sprintf("sys/class/scsi_host/host%d/scan", id+2), ""))
	return "Login successful.", "", 0
}

func (w *World) logout(iqn, portal string) (string, string, int) {
	id := w.session(iqn, portal)
	if id == "" {
		return "", "iscsiadm: No matching sessions found", 21
	}
	for _, dir := range w.glob("sys/bus/scsi/devices/*") {
		if resolved, err := filepath.EvalSymlinks(dir); err == nil && strings.Contains(resolved, "/session"+id+"/") {
			w.need(w.deleteDevice(filepath.Base(dir)))
		}
	}
	n, err := strconv.Atoi(id)
	w.need(err)
	w.remove("sys/class/iscsi_session/session"+id, "sys/class/iscsi_connection/connection"+id+":0",
		fmt.Sprintf("sys/class/scsi_host/host%d", n+2), fmt.Sprintf("sys/devices/platform/host%d", n+2))
	return "", "", 0
}

// at returns the LUN at an address, by what the host is connected to.
func (w *World) lunAt(s *Storage, host, channel, target string, lun uint64) (LUN, string, bool) {
	for _, dir := range w.glob("sys/class/iscsi_session/*") {
		resolved, err := filepath.EvalSymlinks(dir)
		w.need(err)
		if !strings.Contains(resolved, "/host"+host+"/") {
			continue
		}
		id := strings.TrimPrefix(filepath.Base(dir), "session")
		c := "sys/class/iscsi_connection/connection" + id + ":0/"
		t := s.ISCSI[w.attr(w.rel(dir)+"/targetname")]
		if t == nil {
			return LUN{}, "", false
		}
		luns := t.LUNs
		if others := t.Others[net.JoinHostPort(w.attr(c+"persistent_address"), w.attr(c+"persistent_port"))]; others != nil {
			luns = others
		}
		l, ok := luns[lun]
		return l, fmt.Sprintf("sys/devices/platform/host%s/session%s/target%s:0:0", host, id, host), ok
	}
	port := fmt.Sprintf("target%s:%s:%s", host, channel, target)
	l, ok := s.FC[strings.TrimPrefix(w.attr("sys/class/fc_transport/"+port+"/port_name"), "0x")][lun]
	return l, "sys/devices/pci0/host" + host + "/rport-" + host + ":0-" + target + "/" + port, ok
}

// AddHBA gives the host a Fibre Channel port that sees a target port.
func (w *World) AddHBA(host, target int, wwpn string) error {
	h := fmt.Sprintf("sys/class/fc_host/host%d/", host)
	return errors.Join(w.write(h+"port_state", "Online"),
		w.write(h+"port_name", fmt.Sprintf("0x5001438000000%03d", host)),
		w.write(h+"node_name", fmt.Sprintf("0x5001438000001%03d", host)),
		w.write(fmt.Sprintf("sys/class/scsi_host/host%d/scan", host), ""),
		w.write(fmt.Sprintf("sys/class/fc_transport/target%d:0:%d/port_name", host, target), "0x"+wwpn))
}

// scan shows a LUN, if the storage has it. In a wildcard scan every target is asked.
func (w *World) scan(s *Storage, host, value string) error {
	words := strings.Fields(value)
	lun, err := strconv.ParseUint(words[2], 10, 64)
	w.need(err)
	targets := []string{words[1]}
	if ports := w.glob("sys/class/fc_transport/target" + host + ":*"); words[1] == "-" {
		targets = []string{"0"}
		for _, port := range ports {
			targets = append(targets, port[strings.LastIndex(port, ":")+1:])
		}
	}
	for _, target := range targets {
		address := fmt.Sprintf("%s:0:%s:%d", host, target, lun)
		l, parent, ok := w.lunAt(s, host, "0", target, lun)
		if !ok || w.has("sys/bus/scsi/devices/"+address) {
			continue
		}
		disk := w.free(func(i int) string { return "sd" + string(rune('a'+i)) })
		dir := parent + "/" + address
		w.need(errors.Join(w.write(dir+"/wwid", l.Designator), w.write(dir+"/state", "running"), w.write(dir+"/rescan", ""), w.write(dir+"/delete", ""),
			w.write("sys/class/block/"+disk+"/size", strconv.FormatInt(l.Sectors, 10)), w.write("dev/"+disk, "")))
		w.need(os.MkdirAll(w.at("sys/class/block/"+disk+"/holders"), 0o755))
		w.symlink(dir, "sys/bus/scsi/devices/"+address)
		w.symlink(dir, "sys/class/block/"+disk+"/device")
		w.symlink("sys/class/block/"+disk, dir+"/block/"+disk)
		if s.Multipathd && strings.Contains(w.attr("etc/multipath/wwids"), "/"+wwid(l.Designator)+"/") {
			w.addPath(s, disk)
		}
	}
	return nil
}

func wwid(designator string) string { return "3" + strings.TrimPrefix(designator, "naa.") }

// rescan asks the storage anew what is at the address.
func (w *World) rescan(s *Storage, address string) error {
	parts := strings.Split(address, ":")
	lun, err := strconv.ParseUint(parts[3], 10, 64)
	w.need(err)
	if l, _, ok := w.lunAt(s, parts[0], parts[1], parts[2], lun); ok {
		w.need(w.write("sys/bus/scsi/devices/"+address+"/wwid", l.Designator))
		for _, disk := range w.glob("sys/bus/scsi/devices/" + address + "/block/*") {
			w.need(w.write("sys/class/block/"+filepath.Base(disk)+"/size", strconv.FormatInt(l.Sectors, 10)))
		}
	}
	return nil
}

func (w *World) deleteDevice(address string) error {
	link := "sys/bus/scsi/devices/" + address
	if !w.has(link) {
		return os.ErrNotExist
	}
	dir, err := filepath.EvalSymlinks(w.at(link))
	w.need(err)
	for _, block := range w.glob(link + "/block/*") {
		disk := filepath.Base(block)
		for _, slave := range w.glob("sys/class/block/dm-*/slaves/" + disk) {
			w.need(os.Remove(slave))
		}
		w.remove("sys/class/block/"+disk, "dev/"+disk)
	}
	w.remove(link, w.rel(dir))
	return nil
}

// addPath puts a disk into the map of its WWID.
func (w *World) addPath(s *Storage, disk string) {
	id := wwid(w.attr("sys/class/block/" + disk + "/device/wwid"))
	if slices.Contains(s.Blacklist, id) {
		return
	}
	dm := ""
	for _, uuid := range w.glob("sys/class/block/dm-*/dm/uuid") {
		if w.attr(w.rel(uuid)) == "mpath-"+id {
			dm = filepath.Base(filepath.Dir(filepath.Dir(uuid)))
		}
	}
	if dm == "" {
		dm = w.free(func(i int) string { return "dm-" + strconv.Itoa(i) })
		w.need(errors.Join(w.write("sys/class/block/"+dm+"/dm/uuid", "mpath-"+id), w.write("sys/class/block/"+dm+"/dm/name", id),
			w.write("sys/class/block/"+dm+"/size", w.attr("sys/class/block/"+disk+"/size")), w.write("dev/"+dm, "")))
		w.symlink("dev/"+dm, "dev/mapper/"+id)
	}
	w.symlink("sys/class/block/"+disk, "sys/class/block/"+dm+"/slaves/"+disk)
	w.symlink("sys/class/block/"+dm, "sys/class/block/"+disk+"/holders/"+dm)
}

// Partition makes the device of a partition on a multipath map, as udev's rules
// for kpartx do.
func (w *World) Partition(id string) error {
	node, err := filepath.EvalSymlinks(w.at("dev/mapper/" + id))
	if err != nil {
		return err
	}
	part := w.free(func(i int) string { return "dm-" + strconv.Itoa(i) })
	w.symlink("sys/class/block/"+part, "sys/class/block/"+filepath.Base(node)+"/holders/"+part)
	w.symlink("sys/class/block/"+filepath.Base(node), "sys/class/block/"+part+"/slaves/"+filepath.Base(node))
	w.symlink("dev/"+part, "dev/mapper/"+id+"-part1")
	return errors.Join(w.broken, w.write("sys/class/block/"+part+"/dm/uuid", "part1-mpath-"+id),
		w.write("sys/class/block/"+part+"/dm/name", id+"-part1"), w.write("dev/"+part, ""))
}

func multipathd(w *World, s *Storage, cmd command.Cmd) (string, string, int) {
	switch {
	case !s.Multipathd:
		return "", "error -1 receiving packet", 1
	case cmd.Args[0] == "add" && cmd.Args[1] == "path":
		w.addPath(s, cmd.Args[2])
		if s.SaysNo {
			return "fail", "", 1
		}
	case cmd.Args[0] == "resize":
		node, err := filepath.EvalSymlinks(w.at("dev/mapper/" + cmd.Args[2]))
		if err != nil {
			return "fail", "", 1
		}
		dm := "sys/class/block/" + filepath.Base(node)
		for _, path := range w.glob(dm + "/slaves/*") {
			w.need(w.write(dm+"/size", w.attr("sys/class/block/"+filepath.Base(path)+"/size")))
		}
	}
	return "ok", "", 0
}

func multipath(w *World, s *Storage, cmd command.Cmd) (string, string, int) {
	name := cmd.Args[1]
	switch cmd.Args[0] {
	case "-a":
		w.need(w.write("etc/multipath/wwids", w.attr("etc/multipath/wwids")+"\n/"+name+"/"))
	case "-f":
		node, err := filepath.EvalSymlinks(w.at("dev/mapper/" + name))
		if err != nil {
			return "", name + " is not a multipath device", 1
		}
		dm := filepath.Base(node)
		if slices.Contains(s.Open, w.rel(node)) || slices.Contains(s.Probed, w.rel(node)) {
			return "", name + ": map in use", 1
		}
		for _, holder := range w.glob("sys/class/block/sd*/holders/" + dm) {
			w.need(os.Remove(holder))
		}
		for _, holder := range w.glob("sys/class/block/" + dm + "/holders/*") {
			part := filepath.Base(holder)
			if slices.Contains(s.Open, "/dev/"+part) {
				return "", name + ": map in use", 1
			}
			w.remove("dev/mapper/"+w.attr("sys/class/block/"+part+"/dm/name"), "dev/"+part, "sys/class/block/"+part)
		}
		w.remove("dev/mapper/"+name, "dev/"+dm, "sys/class/block/"+dm)
	}
	return "", "", 0
}

func blockdev(w *World, _ *Storage, cmd command.Cmd) (string, string, int) {
	if !w.has(w.rel(cmd.Args[1])) {
		return "", "blockdev: cannot open " + cmd.Args[1], 1
	}
	return "", "", 0
}
