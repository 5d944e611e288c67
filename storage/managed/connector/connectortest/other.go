// SPDX-License-Identifier: Apache-2.0

package connectortest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"diskhook/storage/command"
)

func nvme(w *World, s *Storage, cmd command.Cmd) (string, string, int) {
	f := flags(cmd.Args)
	switch cmd.Args[0] {
	case "connect":
		sub := s.NVMe[f["-n"]]
		if !w.has("dev/nvme-fabrics") {
			return "", "Failed to open /dev/nvme-fabrics: No such file or directory", 1
		}
		if sub == nil || !slices.Contains(sub.Portals, f["-t"]+" "+f["-a"]+" "+f["-s"]) {
			return "", "Failed to write to /dev/nvme-fabrics: Connection refused", 1
		}
		i := 0
		for w.has(fmt.Sprintf("sys/class/nvme/nvme%d", i)) {
			i++
		}
		dir := fmt.Sprintf("sys/class/nvme/nvme%d/", i)
		w.need(errors.Join(w.write(dir+"subsysnqn", f["-n"]), w.write(dir+"transport", f["-t"]), w.write(dir+"state", "live"),
			w.write(dir+"address", "traddr="+f["-a"]+",trsvcid="+f["-s"]+",src_addr=1.1.1.9"), w.write(dir+"rescan_controller", "")))
		w.showNamespaces(s, f["-n"])
	case "disconnect":
		dir := "sys/class/nvme/" + f["-d"]
		nqn := w.attr(dir + "/subsysnqn")
		if nqn == "" {
			return "", "nvme: no such device", 1
		}
		w.remove(dir)
		if len(w.controllersOf(nqn)) == 0 {
			for _, disk := range w.glob("sys/class/block/nvme*") {
				if w.attr(w.rel(disk)+"/device/subsysnqn") == nqn {
					w.remove("dev/"+filepath.Base(disk), w.rel(disk))
				}
			}
		}
	}
	return "", "", 0
}

// modprobe loads the module of a transport, and with it that of the node.
func modprobe(w *World, _ *Storage, cmd command.Cmd) (string, string, int) {
	if name := cmd.Args[len(cmd.Args)-1]; name != "nvme-tcp" {
		return "", "modprobe: FATAL: Module " + name + " not found in directory /lib/modules/6.1.0", 1
	}
	w.need(w.write("dev/nvme-fabrics", ""))
	return "", "", 0
}

func (w *World) controllersOf(nqn string) []string {
	return slices.DeleteFunc(w.glob("sys/class/nvme/*"), func(dir string) bool { return w.attr(w.rel(dir)+"/subsysnqn") != nqn })
}

// showNamespaces makes the disks of a subsystem that the host is connected to.
func (w *World) showNamespaces(s *Storage, nqn string) {
	all := w.controllersOf(nqn)
	if len(all) == 0 || s.NVMe[nqn] == nil {
		return
	}
	for nsid, ns := range s.NVMe[nqn].Namespaces {
		shown := ""
		for _, disk := range w.glob("sys/class/block/nvme*") {
			if w.attr(w.rel(disk)+"/device/subsysnqn") == nqn && w.attr(w.rel(disk)+"/nsid") == strconv.Itoa(nsid) {
				shown = w.rel(disk)[1:] + "/"
			}
		}
		if shown == "" {
			shown = "sys/class/block/" + w.free(func(i int) string { return fmt.Sprintf("nvme%dn%d", i, nsid) }) + "/"
		}
		w.need(errors.Join(w.write(shown+"nsid", strconv.Itoa(nsid)), w.write(shown+"uuid", ns.UUID), w.write(shown+"nguid", ns.NGUID),
			w.write(shown+"wwid", "uuid."+ns.UUID), w.write(shown+"size", strconv.FormatInt(ns.Sectors, 10)),
			w.write(shown+"device/subsysnqn", nqn), w.write("dev/"+filepath.Base(shown), "")))
	}
}

// The monitor that has a name.
const monitorName, monitorAddress = "mon.example", "1.2.3.4"

func resolve(_ context.Context, name string) ([]string, error) {
	if name != monitorName {
		return nil, errors.New(name + ": no such host")
	}
	return []string{"fd00::4", monitorAddress}, nil
}

func rbd(w *World, s *Storage, cmd command.Cmd) (string, string, int) {
	f := flags(cmd.Args)
	last := cmd.Args[len(cmd.Args)-1]
	switch cmd.Args[0] {
	case "map":
		image, ok := s.RBD[last]
		keyring, _ := os.ReadFile(f["--keyring"])
		switch {
		case !ok:
			return "", "rbd: error opening image " + last, 2
		case image.Keyring != "" && strings.TrimSpace(string(keyring)) != image.Keyring:
			return "", "rbd: couldn't connect to the cluster! keyring: " + string(keyring), 1
		}
		conf, _ := os.ReadFile(f["--conf"])
		_, monitors, _ := strings.Cut(string(conf), "mon_host = ")
		monitors, _, _ = strings.Cut(monitors, "\n")
		monitors = strings.ReplaceAll(monitors, monitorName, monitorAddress) // which the kernel gets
		n := strings.TrimPrefix(w.free(func(i int) string { return fmt.Sprintf("rbd%d", i) }), "rbd")
		dir := "sys/bus/rbd/devices/" + n + "/"
		parts := strings.Split(last, "/")
		namespace := strings.Join(parts[1:len(parts)-1], "/")
		w.need(errors.Join(w.write(dir+"pool", parts[0]), w.write(dir+"pool_ns", namespace), w.write(dir+"name", parts[len(parts)-1]), w.write(dir+"current_snap", "-"),
			w.write(dir+"config_info", monitors+" name=cinder,key=client.cinder "+last+" -"), w.write(dir+"cluster_fsid", "f00d"), w.write(dir+"pool_id", "1"), w.write(dir+"image_id", image.ID),
			w.write("sys/class/block/rbd"+n+"/size", strconv.FormatInt(image.Sectors, 10)), w.write("dev/rbd"+n, "")))
		w.symlink("dev/rbd"+n, "dev/rbd/"+last)
		return "/dev/rbd" + n, "", 0
	case "unmap":
		name := filepath.Base(last)
		dir := "sys/bus/rbd/devices/" + strings.TrimPrefix(name, "rbd")
		if slices.Contains(s.Open, "/dev/"+name) {
			return "", "rbd: sysfs write failed\nrbd: unmap failed: (16) Device or resource busy", 16
		}
		if !w.has(dir) {
			return "", "rbd: not a mapped device", 22
		}
		w.remove("dev/rbd/"+filepath.Join(w.attr(dir+"/pool"), w.attr(dir+"/pool_ns"), w.attr(dir+"/name")), "sys/class/block/"+name, "dev/"+name, dir)
	}
	return "", "", 0
}

func mount(w *World, s *Storage, cmd command.Cmd) (string, string, int) {
	n := len(cmd.Args)
	export, at := cmd.Args[n-2], cmd.Args[n-1]
	files, ok := s.NFS[export]
	if !ok {
		return "", "mount.nfs: access denied by server while mounting " + export, 32
	}
	for name, size := range files {
		w.need(os.WriteFile(filepath.Join(at, name), nil, 0o600))
		w.need(os.Truncate(filepath.Join(at, name), int64(size)))
	}
	w.need(w.write("proc/self/mountinfo", w.attr("proc/self/mountinfo")+"\n77 22 0:50 / "+at+" rw shared:2 - nfs4 "+export+" rw,vers=4"))
	return "", "", 0
}

func umount(w *World, s *Storage, cmd command.Cmd) (string, string, int) {
	at := cmd.Args[len(cmd.Args)-1]
	entries, err := os.ReadDir(at)
	w.need(err)
	for _, e := range entries {
		if slices.Contains(s.Open, w.rel(filepath.Join(at, e.Name()))) {
			return "", "umount: " + at + ": target is busy.", 32
		}
	}
	for _, e := range entries {
		w.need(os.Remove(filepath.Join(at, e.Name())))
	}
	lines := slices.DeleteFunc(strings.Split(w.attr("proc/self/mountinfo"), "\n"), func(line string) bool { return strings.Contains(line, " "+at+" ") })
	w.need(w.write("proc/self/mountinfo", strings.Join(lines, "\n")))
	return "", "", 0
}
