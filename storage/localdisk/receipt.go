// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/receipts"
)

// Receipt says which copy a disk must run on. It is durable before the copy
// loses its UPDATING mark. Sizes are bytes.
type Receipt struct {
	Schema     string `json:"schema"` // "diskhook.receipt/v1"
	Domain     string `json:"domain"`
	DomainName string `json:"domain_name"`
	Target     string `json:"target"`
	Image      string `json:"image,omitempty"`
	Volume     string `json:"volume,omitempty"`

	Backend string `json:"backend"`
	Name    string `json:"name"` // of volume or file
	Copy    string `json:"copy"` // UUID of volume or file
	Home    string `json:"home"` // volume group, directory, or thin:CLUSTER
	HomeID  string `json:"home_id,omitempty"`
	OnStop  string `json:"on_stop"`

	Size int64 `json:"size"` // virtual size of the disk
	// From is the image of a storage repository that Source was. Fingerprint is
	// that of the image's content then, and not of its files.
	From        *From              `json:"from,omitempty"`
	Source      []imagecheck.Layer `json:"source"`
	Fingerprint string             `json:"fingerprint"`
	// Device: a layer of the source is a block device, so that the fingerprint
	// does not tell of every write. Older receipts do not say.
	Device  bool      `json:"device,omitempty"`
	Machine string    `json:"machine"`
	Filled  time.Time `json:"filled"`
	// Verified: the copy was read back when it was filled, and was its source;
	// Digest sums up what was read, where the copy engine made it: see transfer.
	Verified bool   `json:"verified,omitempty"`
	Digest   string `json:"digest,omitempty"`

	// Fill and Origin are those of the disk when it was bound; see Note. Older
	// receipts have neither.
	Fill   string `json:"fill,omitempty"`
	Origin string `json:"origin,omitempty"`

	// Used is set before a fulfil first succeeds: from then on the guest's
	// writes may live in the copy.
	Used bool `json:"used"`
	// Untried, of a disk of oVirt: the one fulfil that set Used is all that was
	// heard of so far. The next one, before QEMU starts, says that it is tried.
	Untried bool `json:"untried,omitempty"`
	// Discarding is the intent of a verb that gave the copy up. The copy goes
	// first, then the receipt; whoever finds the intent finishes it.
	Discarding bool `json:"discarding,omitempty"`
	// Overlay is set for a copy that is a qcow2 image on its source.
	Overlay *Overlay `json:"overlay,omitempty"`
	// Pivot is set while the disk goes from an overlay to a raw copy.
	Pivot *Pivot `json:"pivot,omitempty"`
	// Suspended names the run of the domain that who settles the disk has
	// suspended for a moment. Who goes on resumes that one, and no other.
	Suspended string `json:"suspended_run,omitempty"`
	// Growing is the intent of a resize.
	Growing *Growth `json:"growing,omitempty"`
}

const receiptSchema = "diskhook.receipt/v1"

// receiptFile is its name in the directory of the domain's receipts.
func receiptFile(key string) string { return key + ".json" }

func receiptPath(l host.Layout, domain, key string) string {
	return receipts.Path(l, domain, receiptFile(key))
}

// ReadReceipt reads one receipt by the domain's UUID and the disk's key; nil
// without error when there is none. One that is there, but cannot be read or
// understood, is a failure.Precondition: it may say used. The error has no kind
// where the domain has no directory of receipts that anybody could see.
func ReadReceipt(l host.Layout, domain, key string) (*Receipt, error) {
	b, err := receipts.Read(l, domain, receiptFile(key))
	if b == nil {
		return nil, err
	}
	path := receiptPath(l, domain, key)
	var r Receipt
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, badReceipt(path, err)
	}
	if r.Schema != receiptSchema || r.Domain != domain || r.Copy == "" {
		return nil, badReceipt(path, fmt.Errorf("schema %.64q, domain %.64q, copy %.64q", r.Schema, r.Domain, r.Copy))
	}
	return &r, nil
}

func badReceipt(path string, err error) error {
	err = failure.New(failure.Precondition, "receipt %s: not understood: %w", path, err)
	of, key := filepath.Base(filepath.Dir(path)), strings.TrimSuffix(filepath.Base(path), ".json")
	return failure.Hint(err, "restore the file from a backup, or remove it and take the copy over with `diskhook local adopt %s %s`", of, key)
}

// write makes r durable.
func (r Receipt) write(l host.Layout, key string) error {
	return receipts.Write(l, r.Domain, receiptFile(key), r)
}

func removeReceipt(l host.Layout, domain, key string) error {
	return receipts.Remove(l, domain, receiptFile(key))
}

// Receipts returns the receipts of one domain, or of all when domain is "". It
// returns those that can be read, beside an error that joins the others: a
// damaged one may be of a copy that a guest used.
func Receipts(l host.Layout, domain string) ([]Receipt, error) {
	if domain != "" && !host.IsUUID(domain) {
		return nil, failure.New(failure.Usage, "domain %q: not a uuid", domain)
	}
	var all []Receipt
	var damaged []error
	files, err := receiptsNamed(l, domain)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		r, err := ReadReceipt(l, f.domain, f.key)
		if err != nil {
			damaged = append(damaged, err)
		} else if r != nil {
			all = append(all, *r)
		}
	}
	return all, errors.Join(damaged...)
}

// named is a receipt by the name of its file.
type named struct{ domain, key string }

// receiptsNamed lists the receipts of one domain, or of all when domain is "".
func receiptsNamed(l host.Layout, domain string) ([]named, error) {
	domains := []string{domain}
	if domain == "" {
		var err error
		if domains, err = receipts.Domains(l); err != nil {
			return nil, err
		}
	}
	var all []named
	for _, domain := range domains {
		keys, err := receipts.Keys(l, domain, receiptFile(""))
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			all = append(all, named{domain, key})
		}
	}
	return all, nil
}

// Key is Disk.Key of the disk that the receipt is for.
func (r Receipt) Key() string {
	return Disk{Target: r.Target, Image: r.Image, Volume: r.Volume}.Key()
}

// Place is where the copy is to be: VG/LV, CLUSTER/VOLUME, or the path of its file.
func (r Receipt) Place() string {
	if filepath.IsAbs(r.Home) {
		return filepath.Join(r.Home, r.Name+suffix(r.Format(), Ready))
	}
	return strings.TrimPrefix(r.Home, thinHome) + "/" + r.Name
}

// LeftRaw is where the raw copy is that was begun, and is not the disk; "" is
// that there is none. It goes by what the receipt says alone: a domain that runs
// may have gone over to it.
func (r Receipt) LeftRaw() string {
	if r.Pivot == nil || r.Overlay == nil {
		return ""
	}
	return Receipt{Home: r.Home, Name: r.Pivot.Name}.Place()
}

// Left is what is to be known of LeftRaw, and done about it.
func (r Receipt) Left() string {
	raw := r.LeftRaw()
	if raw == "" {
		return ""
	}
	return fmt.Sprintf("%s is left of a change to a raw copy that was interrupted; any settling goes on with it, after which the disk is raw; "+
		"`diskhook local settle --no-raw %s` removes it instead", raw, r.Disk().args())
}

// Disk is the disk that the receipt is for, as far as the receipt knows it.
func (r Receipt) Disk() Disk {
	d := Disk{
		Domain: r.Domain, DomainName: r.DomainName, Target: r.Target, Image: r.Image, Volume: r.Volume,
		Backend: r.Backend, OnStop: r.OnStop, Copy: r.Copy, Source: r.Source, From: r.From, Fill: r.Fill, Origin: r.Origin,
	}
	return d.named(&r)
}

// named is d with the name and the home that its copy has by the receipt: it
// stays there when another place is configured.
func (d Disk) named(r *Receipt) Disk {
	d.Home = ""
	if r != nil && r.Backend == d.Backend {
		d.Home = r.Home
	}
	if r != nil && !d.OVirt() {
		d.Name = r.Name
	}
	return d
}

// Note writes into the receipt of a disk how it is bound now. It is for a copy
// that was there before the binding, and for a binding that changed since.
// Where there is no receipt, or one that is given up, nothing happens.
func (s *Service) Note(ctx context.Context, d Disk) error {
	if err := d.Validate(); err != nil {
		return err
	}
	noted := func() (*Receipt, bool, error) {
		r, err := ReadReceipt(s.Layout, d.Domain, d.Key())
		return r, err != nil || r == nil || r.Discarding || r.Fill == d.Fill && r.Origin == d.Origin, err
	}
	if _, is, err := noted(); is {
		return err
	}
	l, err := s.lockOne(ctx, d.Domain, d.Key())
	if err != nil {
		return err
	}
	defer l.Release()
	r, is, err := noted()
	if is {
		return err
	}
	r.Fill, r.Origin = d.Fill, d.Origin
	return r.write(s.Layout, r.Key())
}

// A domain with saved memory keeps its disks as they are: the memory image
// would meet another disk when it is restored. libvirt knows of a managed
// save itself; for oVirt the hooks keep a mark of their own.

func savedMark(l host.Layout, domain string) string {
	return receipts.Path(l, domain, "saved")
}

// MarkSaved records durably that the domain has saved memory. A domain without
// receipts has no copy that could be kept, and gets no mark: who calls the
// helper with whatever ids makes nothing. A receipt that cannot be read counts.
func MarkSaved(l host.Layout, domain string) error {
	if !host.IsUUID(domain) {
		return failure.New(failure.Usage, "domain %q: not a uuid", domain)
	}
	if files, err := receiptsNamed(l, domain); err != nil || len(files) == 0 {
		return err
	}
	return atomicfile.Write(savedMark(l, domain), nil, 0o644)
}

// ClearSaved takes the mark away.
func ClearSaved(l host.Layout, domain string) error {
	if !host.IsUUID(domain) {
		return failure.New(failure.Usage, "domain %q: not a uuid", domain)
	}
	return atomicfile.Remove(savedMark(l, domain))
}

// Saved reports whether the mark is there. In doubt it is.
func Saved(l host.Layout, domain string) bool {
	_, err := os.Stat(savedMark(l, domain))
	return !errors.Is(err, fs.ErrNotExist)
}

// newReceipt is the receipt of a complete copy that no guest has used.
func newReceipt(o Observed, info imagecheck.Info) Receipt {
	r := Receipt{
		Schema: receiptSchema, Domain: o.Disk.Domain, DomainName: o.Disk.DomainName, Target: o.Disk.Target,
		Image: o.Disk.Image, Volume: o.Disk.Volume, Backend: o.Disk.Backend, OnStop: o.Disk.OnStop,
		Name: o.Copy.Name, Copy: o.Copy.UUID, Home: o.Copy.Home, HomeID: o.Copy.HomeID,
		Size: info.VirtualSize, Source: o.Disk.Source, Fingerprint: info.Fingerprint, Device: info.Block,
		Machine: o.Machine, Filled: time.Now().UTC(), Verified: o.Disk.Verify && !o.Disk.Instant, Digest: o.Digest,
		Fill: o.Disk.Fill, Origin: o.Disk.Origin,
	}
	if o.Disk.held != "" {
		r.From, r.Fingerprint, r.Device = o.Disk.From, o.Disk.held, false
	}
	if o.Copy.Format == imagecheck.QCOW2 {
		r.Overlay = &Overlay{Source: info.Identities}
		if o.Template.Name != "" {
			r.Overlay = &Overlay{Settled: r.Filled, Template: o.Template.ref()}
		}
	}
	return r
}
