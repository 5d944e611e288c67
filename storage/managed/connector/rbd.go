// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// rbd is an image of a Ceph cluster, mapped by the kernel:
//
//	{"driver_volume_type": "rbd", "data": {"name": "POOL/IMAGE", "hosts": [...], "ports": [...],
//	 "auth_username": "cinder", "keyring": "[client.cinder]\n\tkey = …", "cluster_name": "ceph"}}
//
// Monitors and keyring go into private files, which rbd(8) is told of. Without
// them it has what /etc/ceph says.
type rbd struct {
	host     *Host
	info     Info
	image    image
	monitors []string
	user     string
	cluster  string
}

// image is POOL[/NAMESPACE]/IMAGE (rbd(8), "IMAGE AND SNAP SPECS").
type image struct{ pool, namespace, name string }

func (i image) spec() string {
	if i.namespace == "" {
		return i.pool + "/" + i.name
	}
	return i.pool + "/" + i.namespace + "/" + i.name
}

const (
	rbdTime     = 2 * time.Minute
	resolveTime = 10 * time.Second
)

func parseImage(info Info) (image, error) {
	spec, err := info.text("name")
	if err != nil {
		return image{}, err
	}
	parts := strings.Split(spec, "/")
	for _, part := range parts {
		if !word(part, "._-") {
			return image{}, invalid("data.name: %q is not POOL/IMAGE", spec)
		}
	}
	switch len(parts) {
	case 2:
		return image{pool: parts[0], name: parts[1]}, nil
	case 3:
		return image{pool: parts[0], namespace: parts[1], name: parts[2]}, nil
	}
	return image{}, invalid("data.name: %q is not POOL/IMAGE", spec)
}

func newRBD(h *Host, info Info) (Connector, error) {
	r := &rbd{host: h, info: info}
	var err1, err2, err3, err4 error
	r.image, err1 = parseImage(info)
	r.user, err2 = info.optional("auth_username")
	r.cluster, err3 = info.optional("cluster_name")
	r.monitors, err4 = monitors(info)
	if err := errors.Join(err1, err2, err3, err4, info.checkSecret("keyring")); err != nil {
		return nil, err
	}
	if r.cluster == "" {
		r.cluster = "ceph"
	}
	switch {
	case r.user != "" && !word(r.user, "._-"):
		return nil, invalid("data.auth_username: %q is not a name", r.user)
	case !word(r.cluster, "._-"):
		return nil, invalid("data.cluster_name: %q is not a name", r.cluster)
	case info.hasSecret("keyring") && r.user == "":
		return nil, invalid("data.auth_username is missing, and there is a keyring")
	}
	return r, nil
}

// monitors joins hosts and ports, which are two lists of equal length.
func monitors(info Info) ([]string, error) {
	hosts, err := info.texts("hosts")
	if err != nil {
		return nil, err
	}
	ports := info.list("ports")
	if len(ports) != len(hosts) {
		return nil, invalid("data.ports: %d of them for %d hosts", len(ports), len(hosts))
	}
	var all []string
	for i, host := range hosts {
		port, err := number(ports[i])
		if err != nil || port == 0 || port > 65535 {
			return nil, invalid("data.ports: not all are ports")
		}
		host = strings.Trim(host, "[]")
		if net.ParseIP(host) == nil && !word(host, ".-") {
			return nil, invalid("data.hosts: %q is not a host", host)
		}
		all = append(all, net.JoinHostPort(host, strconv.FormatUint(port, 10)))
	}
	return all, nil
}

func (r *rbd) Takes() []string { return []string{"rbd:" + r.cluster + ":" + r.image.spec()} }

// Shares is the image: nothing else on the host depends on its mapping.
func (r *rbd) Shares() []string { return r.Takes() }

func (r *rbd) dir() string     { return filepath.Join(r.host.Private, r.info.volume) }
func (r *rbd) conf() string    { return filepath.Join(r.dir(), "ceph.conf") }
func (r *rbd) keyring() string { return filepath.Join(r.dir(), "keyring") }

func (r *rbd) Attach(ctx context.Context) (Attachment, error) {
	name, err := r.mapped(ctx)
	if err != nil {
		return Attachment{}, err
	}
	if name == "" {
		if name, err = r.mapImage(ctx); err != nil {
			return Attachment{}, err
		}
	}
	if err := failpoint.Hit("rbd.mapped"); err != nil {
		return Attachment{}, err
	}
	// Ceph's udev rule makes the link.
	path := r.host.at("dev/rbd", r.image.spec())
	if err := r.host.await(ctx, path, func() bool {
		linked, err := r.host.device(path)
		return err == nil && linked == name
	}); err != nil {
		return Attachment{}, failure.Hint(fmt.Errorf("image %s is /dev/%s: %w", r.image.spec(), name, err),
			"install ceph-common, whose udev rule links mapped images there")
	}
	body, err := json.Marshal(map[string]string{"type": "block", "path": r.host.at("dev", name), "conf": r.conf()})
	return Attachment{Path: path, JSON: body, Identity: r.host.identity(name)}, err
}

// mapImage maps the image and returns the name of its device.
func (r *rbd) mapImage(ctx context.Context) (string, error) {
	args, err := r.credentials()
	if err != nil {
		return "", err
	}
	if err := failpoint.Hit("rbd.credentials"); err != nil {
		return "", err
	}
	if _, err := r.host.Run.Run(ctx, command.Cmd{
		Name: "rbd", Args: args, Timeout: rbdTime,
	}); err != nil {
		return "", fmt.Errorf("image %s: map: %w", r.image.spec(), err)
	}
	name, err := r.mapped(ctx)
	if err == nil && name == "" {
		err = fmt.Errorf("image %s: rbd mapped it, and the kernel does not have it", r.image.spec())
	}
	return name, err
}

// credentials writes the private files and returns the command that names them.
// ceph.conf is in ceph's own format; a keyring is named for the client only.
func (r *rbd) credentials() ([]string, error) {
	keyring, err := r.host.secret(r.info, "keyring")
	if err != nil {
		return nil, err
	}
	if len(r.monitors) == 0 && keyring == "" {
		return r.mapping(false), nil
	}
	if err := atomicfile.MkdirAll(r.dir(), 0o700); err != nil {
		return nil, err
	}
	if len(r.monitors) > 0 {
		conf := "[global]\nmon_host = " + strings.Join(r.monitors, ",") + "\n"
		if keyring != "" {
			conf += "[client." + r.user + "]\nkeyring = " + r.keyring() + "\n"
		}
		if err := atomicfile.Write(r.conf(), []byte(conf), 0o600); err != nil {
			return nil, err
		}
	}
	if keyring != "" {
		if err := atomicfile.Write(r.keyring(), []byte(keyring+"\n"), 0o600); err != nil {
			return nil, err
		}
	}
	return r.mapping(keyring != ""), nil
}

// mapping is the command that maps the image, with or without a keyring.
func (r *rbd) mapping(keyring bool) []string {
	args := []string{"map", "--cluster", r.cluster}
	if r.user != "" {
		args = append(args, "--id", r.user)
	}
	if len(r.monitors) > 0 {
		args = append(args, "--conf", r.conf())
	}
	if keyring {
		args = append(args, "--keyring", r.keyring())
	}
	return append(args, "--", r.image.spec())
}

// mapped finds the image among what the kernel has mapped
// (Documentation/ABI/testing/sysfs-bus-rbd), and returns rbdN or "". An image
// of the same name from other monitors is another image.
func (r *rbd) mapped(ctx context.Context) (string, error) {
	for _, dir := range r.host.glob("sys/bus/rbd/devices/*") {
		there := image{attr(dir, "pool"), attr(dir, "pool_ns"), attr(dir, "name")}
		if there != r.image || attr(dir, "current_snap") != "-" {
			continue
		}
		monitors, err := r.addresses(ctx)
		if err != nil {
			return "", err
		}
		if ours(monitors, attr(dir, "config_info")) {
			return "rbd" + filepath.Base(dir), nil
		}
	}
	return "", nil
}

// addresses are the monitors as the kernel knows them: rbd resolves their names.
func (r *rbd) addresses(ctx context.Context) ([]string, error) {
	resolve := r.host.Resolve
	if resolve == nil {
		resolve = net.DefaultResolver.LookupHost
	}
	var all []string
	for _, monitor := range r.monitors {
		host, port, err := net.SplitHostPort(monitor)
		if err != nil {
			return nil, err
		}
		if net.ParseIP(host) != nil {
			all = append(all, monitor)
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, resolveTime)
		found, err := resolve(ctx, host)
		cancel()
		if err != nil {
			return nil, failure.New(failure.Temporary, "monitor %s of image %s: %w", host, r.image.spec(), err)
		}
		for _, address := range found {
			all = append(all, net.JoinHostPort(address, port))
		}
	}
	return all, nil
}

// ours compares monitors. config_info begins with them, as they were given to
// the kernel: "1.2.3.4:6789,[::1]:6789 name=…".
func ours(monitors []string, config string) bool {
	if len(monitors) == 0 || config == "" {
		return true
	}
	given, _, _ := strings.Cut(config, " ")
	for _, monitor := range strings.Split(given, ",") {
		if slices.Contains(monitors, monitor) {
			return true
		}
	}
	return false
}

func (r *rbd) Detach(ctx context.Context, _ Attachment, _ []Connector) error {
	name, err := r.mapped(ctx)
	if err != nil {
		return err
	}
	if name != "" {
		node := r.host.at("dev", name)
		if err := r.host.unused(ctx, node); err != nil {
			return err
		}
		if _, err := r.host.Run.Run(ctx, command.Cmd{Name: "rbd", Args: []string{"unmap", "--", node}, Timeout: rbdTime}); err != nil {
			if strings.Contains(err.Error(), "busy") {
				err = failure.New(failure.Conflict, "%w: %w", ErrInUse, err)
			}
			return fmt.Errorf("image %s: unmap: %w", r.image.spec(), err)
		}
	}
	if err := failpoint.Hit("rbd.unmapped"); err != nil {
		return err
	}
	return os.RemoveAll(r.dir())
}
