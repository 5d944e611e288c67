// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"fmt"
	"strings"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/progress"
)

// Observed is one disk with everything that Decide looks at.
type Observed struct {
	Disk    Disk
	Copy    Copy
	Receipt *Receipt // nil: none
	Busy    bool     // a copy process or a verb holds the disk's lock
	Saved   bool     // the domain has saved memory
	// Begun: the copy is updating, and how far it got is known.
	Begun bool
	// Stale: no guest used the copy yet, and its source is not any more what
	// it was made from, or nobody can know. Only ObserveSources looks.
	Stale bool
	// Stuck: the process of a copy that ended waits for storage that hangs. Who
	// waits for a busy one finds out.
	Stuck bool
	// Former: the copy has no receipt, and is where copies do not go any more.
	Former bool
	// Template is what an overlay on a template lies on; without a name there is
	// none.
	Template Copy
	// Below is why an overlay cannot be used: what it lies on is gone, or
	// something else.
	Below error `json:"-"`
	// Digest is of what was read back just now, with Disk.Verify; see transfer.
	Digest  string
	Machine string // this machine's id
	Status  *progress.Status

	room room // of its home, as of the same look
}

// Action is what a start does with one disk.
type Action string

// The actions. Create, Resume, Replace and Retire are done by the copy process.
const (
	Use     Action = "use"     // activate the ready copy
	Create  Action = "create"  // no copy: make and fill one
	Resume  Action = "resume"  // go on with a copy that was interrupted, if its source is still the same; else Replace
	Replace Action = "replace" // a copy that no guest used is unfinished or given up: remove it, then create
	Retire  Action = "retire"  // on-stop=discard and the source has another leaf: give the old copy up, then create
	Adopt   Action = "adopt"   // a complete volume of oVirt's hook: take it over
	Wait    Action = "wait"    // somebody works on the copy
	Veto    Action = "veto"
)

// Decision is an action; a veto has the error that says why and what to do.
type Decision struct {
	Action Action
	Err    error
}

// claim is what the receipt says about the copy.
type claim string

const (
	unclaimed  claim = "no receipt"
	unused     claim = "receipt, never used"
	used       claim = "receipt, used by the guest"
	discarding claim = "receipt, given up"
)

func claimOf(r *Receipt) claim {
	switch {
	case r == nil:
		return unclaimed
	case r.Discarding:
		return discarding
	case r.Used:
		return used
	}
	return unused
}

// protocol is the state machine: what a copy's state and its claim ask for.
// Nothing that a guest may have written to is ever removed by it.
var protocol = map[State]map[claim]func(Observed) Decision{
	Absent: {
		unclaimed: create, unused: create, discarding: create,
		used: veto(lost),
	},
	Updating: {
		unclaimed: resume, unused: resume, discarding: replace,
		used: veto(spoiled),
	},
	Ready: {
		unclaimed: adopt,
		unused:    use, used: use,
		discarding: replace,
	},
}

// Decide says what a start has to do with the disk. It is pure.
func Decide(o Observed) Decision {
	for _, refuse := range []func(Observed) error{elsewhere, wrongBackend, otherLeaf} {
		if err := refuse(o); err != nil {
			return Decision{Veto, err}
		}
	}
	if err := wrongFormat(o); err != nil {
		return Decision{Veto, err}
	}
	if o.Busy {
		return Decision{Action: Wait}
	}
	if o.Receipt == nil && o.Disk.Copy != "" && o.Copy.State != Ready {
		return Decision{Veto, forgotten(o)}
	}
	if retires(o) {
		return permitted(o, Retire)
	}
	if o.Copy.State == Ready && o.Receipt != nil && o.Receipt.Copy != o.Copy.UUID {
		// With another leaf, on-stop=discard would make room for a fresh copy;
		// but what lies under the new leaf's name is complete, and not ours.
		return Decision{Veto, foreign(o)}
	}
	return protocol[o.Copy.State][claimOf(o.Receipt)](o)
}

func create(o Observed) Decision { return permitted(o, Create) }

func resume(o Observed) Decision {
	d := replace(o)
	if d.Action == Replace && o.Begun {
		d.Action = Resume
	}
	return d
}

func replace(o Observed) Decision {
	if domain := tagged(o.Copy, tagVM); domain != "" && domain != o.Disk.Domain {
		err := failure.New(failure.Conflict, "%s: %s is being made for the domain %s", o.Disk, o.Copy, domain)
		return Decision{Veto, failure.Hint(err, "see `diskhook local list`; once nothing works on it, remove it with `lvremove` or `rm`")}
	}
	if o.Stuck {
		return Decision{Veto, stuckError(o.Disk, *o.Status)}
	}
	return permitted(o, Replace)
}

// permitted lets a start make a copy only where the binding says so. The
// prestage verb sets Create itself.
func permitted(o Observed, a Action) Decision {
	if o.Disk.Create {
		return Decision{Action: a}
	}
	if o.Copy.State == Ready && o.Receipt != nil && !o.Receipt.Discarding {
		err := failure.New(failure.Precondition, "%s: its local copy was made before the disk was bound, and its source may have been written to since", o.Disk)
		return Decision{Veto, failure.Hint(err, "make it again with `diskhook local prestage %s`", o.Disk.NameArg())}
	}
	err := failure.New(failure.Precondition, "%s: its local copy is %s and the binding is fill=now, so a start does not make it", o.Disk, o.Copy.State)
	return Decision{Veto, failure.Hint(err, "run `diskhook local prestage %s`", o.Disk.NameArg())}
}

func use(o Observed) Decision {
	switch {
	case !o.Receipt.Used && (o.Stale || o.madeUnbound()):
		return replace(o)
	case o.Copy.Sick != "":
		err := failure.New(failure.Precondition, "%s: %s: %s", o.Disk, o.Copy, o.Copy.Sick)
		if sortOf(o.Copy.Home) == thinBackend {
			return Decision{Veto, failure.Hint(err, "see `diskhook thin status`, put that right, then start again")}
		}
		return Decision{Veto, failure.Hint(err, "repair the volume group, then start again")}
	case o.Below != nil:
		return Decision{Veto, o.Below}
	case o.Receipt.Overlay == nil && o.Copy.Size < o.Receipt.Size:
		err := failure.New(failure.Precondition, "%s: %s has %d bytes, its disk %d: it was cut off", o.Disk, o.Copy, o.Copy.Size, o.Receipt.Size)
		return Decision{Veto, failure.Hint(err, "restore it from a backup, or run `diskhook local recreate --discard-guest-data %s`", o.Disk.args())}
	}
	return Decision{Action: Use}
}

// adopt takes over a complete volume of oVirt's hook when everything that can
// be checked says that it is this disk's. A volume of ours without a receipt
// means that the receipts were lost, which only the operator can judge.
func adopt(o Observed) Decision {
	var differs []string
	note := func(bad bool, format string, args ...any) {
		if bad {
			differs = append(differs, fmt.Sprintf(format, args...))
		}
	}
	note(!o.Disk.OVirt(), "it has no receipt")
	note(o.Disk.OVirt() && o.Copy.ours(), "it is diskhook's own but has no receipt")
	note(!o.Copy.has(tagVM+o.Disk.Domain), "it has no tag %s%s", tagVM, o.Disk.Domain)
	note(o.Disk.OVirt() && !o.Copy.has(tagImage+o.Disk.Image), "it has no tag %s%s", tagImage, o.Disk.Image)
	note(o.Disk.OVirt() && !o.Copy.closed(), "it is open, or may be")
	note(o.Copy.Sick != "", "it is not well: %s", o.Copy.Sick)
	if len(differs) == 0 {
		return Decision{Action: Adopt}
	}
	err := failure.New(failure.Conflict, "%s: %s is complete, but not known to be this disk's: %s", o.Disk, o.Copy, strings.Join(differs, ", "))
	return Decision{Veto, failure.Hint(err, "if it is, run `diskhook local adopt %s`", o.Disk.args())}
}

func veto(why func(Observed) error) func(Observed) Decision {
	return func(o Observed) Decision { return Decision{Veto, why(o)} }
}

func lost(o Observed) error {
	what := "the volume"
	if sortOf(o.Receipt.Home) == "dir" {
		what = "the file or its file system"
	}
	err := failure.New(failure.NotFound, "%s: its local copy %s is gone, and the guest has written to it", o.Disk, o.Receipt.Place())
	return failure.Hint(err, "bring %s back, or give its data up with `diskhook local recreate --discard-guest-data %s`", what, o.Disk.args())
}

// forgotten: the metadata say that a copy was made, so the guest may have
// written to it; that nothing here knows of it does not make the source the truth.
func forgotten(o Observed) error {
	err := failure.New(failure.NotFound, "%s: its metadata name the copy %s, of which this host has neither a receipt nor a complete volume", o.Disk, o.Disk.Copy)
	return failure.Hint(err, "bring the copy back, or start over with `diskhook local recreate --discard-guest-data %s`", o.Disk.args())
}

func spoiled(o Observed) error {
	err := failure.New(failure.Conflict, "%s: %s is marked UPDATING, but the guest has written to it", o.Disk, o.Copy)
	return failure.Hint(err, "find out who marked it; `diskhook local recreate --discard-guest-data %s` gives its data up", o.Disk.args())
}

func foreign(o Observed) error {
	if o.Copy.UUID == "" {
		err := failure.New(failure.Conflict, "%s: %s is complete, but %s", o.Disk, o.Copy, o.Copy.Sick)
		return failure.Hint(err, "restore that file, or run `diskhook local adopt %s` if the copy is this disk's", o.Disk.args())
	}
	err := failure.New(failure.Conflict, "%s: %s has the UUID %s, the receipt names %s: another volume took its place", o.Disk, o.Copy, o.Copy.UUID, o.Receipt.Copy)
	return failure.Hint(err, "bring the right one back, or run `diskhook local adopt %s` if this is it", o.Disk.args())
}

// elsewhere refuses a binding or a receipt of another machine: the guest's
// writes are there.
func elsewhere(o Observed) error {
	for _, named := range []struct{ by, machine string }{{"binding", o.Disk.Host}, {"receipt", o.receiptMachine()}} {
		if named.machine != "" && named.machine != o.Machine {
			err := failure.New(failure.Precondition, "%s: its %s is for the machine %s, this is %s", o.Disk, named.by, named.machine, o.Machine)
			return failure.Hint(err, "start it there; to move it, run `diskhook local export %s FILE` there first", o.Disk.args())
		}
	}
	if r := o.Receipt; r != nil && o.Disk.Copy != "" && o.Disk.Copy != r.Copy && !r.Discarding {
		err := failure.New(failure.Conflict, "%s: its metadata names the copy %s, the receipt %s", o.Disk, o.Disk.Copy, r.Copy)
		return failure.Hint(err, "run `diskhook domain apply --refresh %s`", o.Disk.NameArg())
	}
	return nil
}

func (o Observed) receiptMachine() string {
	if o.Receipt == nil {
		return ""
	}
	return o.Receipt.Machine
}

func wrongBackend(o Observed) error {
	r := o.Receipt
	if r == nil || r.Discarding || r.Backend == o.Disk.Backend {
		return nil
	}
	err := failure.New(failure.Conflict, "%s: the binding says %s, its copy lives on %s", o.Disk, o.Disk.Backend, r.Backend)
	return failure.Hint(err, "bind it to %s again, or run `diskhook local recreate --discard-guest-data %s`", r.Backend, o.Disk.args())
}

// otherLeaf refuses a snapshot taken on shared storage: a new leaf volume has
// another name, and a fresh copy of it would hide what the guest wrote.
func otherLeaf(o Observed) error {
	r := o.Receipt
	if r == nil || r.Volume == o.Disk.Volume || r.Discarding || discardable(o) {
		return nil
	}
	err := failure.New(failure.Conflict, "%s: the guest's data is in the copy of volume %s, but the disk's leaf is now %s (a snapshot?)", o.Disk, r.Volume, o.Disk.Volume)
	return failure.Hint(err, "go back to the older leaf, save the data with `diskhook local export %s FILE`, or run `diskhook local remove --discard-guest-data %s` to start from the shared disk", o.Disk.args(), o.Disk.args())
}

// retires: with on-stop=discard another leaf is the normal way to hand out a
// new version of a template.
func retires(o Observed) bool {
	r := o.Receipt
	return r != nil && r.Volume != o.Disk.Volume && discardable(o) && o.Copy.State != Ready
}

// discardable: the copy was made for a guest that is told to keep nothing, and
// still is. A property that changed since is no consent for what lies there.
func discardable(o Observed) bool {
	return o.Disk.OnStop == Discard && o.Receipt.OnStop == Discard && !o.Saved
}

// NameArg is the domain as a word of a command in a hint: by its name, if it has
// one that can stand there.
func (d Disk) NameArg() string {
	if d.DomainName == "" || strings.HasPrefix(d.DomainName, "-") || failure.OneLine(d.DomainName) != d.DomainName {
		return d.Domain // a name that would be an option, or not survive in one line
	}
	return command.Quote([]string{d.DomainName})
}

func (d Disk) args() string { return d.NameArg() + " " + d.Target }

// Describe says in a few words what the decision is for, for plans.
func (o Observed) Describe(dec Decision) string {
	what := map[Action]string{
		Use:     "use the ready copy",
		Create:  "make and fill a copy",
		Resume:  "go on with the copy that was interrupted",
		Replace: "remove an unfinished copy that no guest used, then make and fill one",
		Retire:  "give up the copy of an older leaf (on-stop=discard), then make and fill one",
		Adopt:   "adopt the volume of oVirt's hook",
		Wait:    "wait for the process that works on the copy",
	}[dec.Action]
	switch {
	case dec.Action == Resume && o.Former:
		what += fmt.Sprintf(" where it is, in %s, where copies do not go any more", o.Copy.Home)
	case dec.Action == Replace && o.Copy.State == Ready && !o.Receipt.Discarding:
		what = "remove a copy that no guest used, for its source may have been written to since, then make and fill one"
	case dec.Action == Create && o.Disk.Instant:
		what = "make an overlay on the source"
	case dec.Action == Create && o.Disk.Template:
		what = "make an overlay on the template of its base, with the disk's own images"
	case dec.Action == Use && o.Receipt.Unsettled():
		what = "use the overlay, a part of whose data is in the source"
	}
	if dec.Err != nil {
		what = "refuse: " + failure.Line(dec.Err)
	}
	return fmt.Sprintf("disk %s: %s", o.Disk.Target, what)
}

// vetoes joins the refusals of all disks into one line.
func vetoes(decisions []Decision) error {
	var all error
	for _, d := range decisions {
		switch {
		case d.Action != Veto:
		case all == nil:
			all = d.Err
		default:
			all = fmt.Errorf("%w; and %w", all, d.Err)
		}
	}
	return all
}
