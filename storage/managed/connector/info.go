// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"

	"diskhook/storage/failure"
)

// maxInfo bounds connection data; real ones have a kilobyte or two.
const maxInfo = 256 << 10

// Info is Cinder's connection_info: how a volume is reached.
type Info struct {
	Type    string // driver_volume_type, in lower case
	Adapter string // the external program that attaches it, or empty
	Data    map[string]any

	raw     []byte
	volume  string
	secrets []string
}

// ParseInfo reads a connection_info. A wrong one is ErrInvalid. Nothing of its
// content beyond the type is in the error, which may be logged.
func ParseInfo(raw []byte) (Info, error) {
	if len(raw) > maxInfo {
		return Info{}, invalid("it has %d bytes, and %d are the most", len(raw), maxInfo)
	}
	var doc struct {
		Type    *string         `json:"driver_volume_type"`
		Adapter *string         `json:"adapter"`
		Data    *map[string]any `json:"data"`
	}
	if err := decode(raw, &doc); err != nil {
		return Info{}, invalid("not a JSON object of driver_volume_type and data: %s", spoken(err))
	}
	switch {
	case doc.Type == nil || *doc.Type == "":
		return Info{}, invalid("driver_volume_type is missing")
	case doc.Data == nil || *doc.Data == nil:
		return Info{}, invalid("data is missing")
	}
	info := Info{Type: strings.ToLower(*doc.Type), Data: *doc.Data, raw: bytes.Clone(raw)}
	if doc.Adapter != nil {
		info.Adapter = *doc.Adapter
		if !adapterName(info.Adapter) {
			return Info{}, invalid("adapter %q: not a name of letters, digits, _ and -", info.Adapter)
		}
	}
	info.secrets = secretsOf(info.Data, nil)
	return info, nil
}

// decode keeps numbers as they are written, and takes one value only.
func decode(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the object")
	}
	return nil
}

// spoken says what decode found without the words of Go.
func spoken(err error) string {
	wrong, broken := new(json.UnmarshalTypeError), new(json.SyntaxError)
	switch {
	case errors.Is(err, io.EOF):
		return "it is empty"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "it ends in the middle"
	case errors.As(err, &wrong) && wrong.Field == "":
		return "it is of type " + wrong.Value
	case errors.As(err, &wrong):
		return wrong.Field + " is of type " + wrong.Value
	case errors.As(err, &broken):
		return fmt.Sprintf("%v (at byte %d)", broken, broken.Offset)
	}
	return err.Error()
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}

// Raw is the JSON as it was given, secrets included.
func (i Info) Raw() []byte { return i.raw }

// Same says whether two documents mean the same connection: the order of keys
// and white space do not count.
func (i Info) Same(other Info) bool {
	var a, b any
	return decode(i.raw, &a) == nil && decode(other.raw, &b) == nil && reflect.DeepEqual(a, b)
}

// Digest identifies the connection without telling what is in it. It does not
// change with passwords.
func (i Info) Digest() string {
	canonical, err := json.Marshal(redact(map[string]any{"type": i.Type, "adapter": i.Adapter, "data": i.Data}))
	if err != nil {
		return "" // what was decoded from JSON can be encoded
	}
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:])
}

// Discards says that the storage takes back what is discarded (data.discard,
// which os-brick passes on and libvirt's XML has to say).
func (i Info) Discards() bool { return i.flag("discard") }

// has says whether the key has a value.
func (i Info) has(key string) bool { return i.Data[key] != nil }

// text is the string at key, which must be there.
func (i Info) text(key string) (string, error) {
	if !i.has(key) {
		return "", invalid("data.%s is missing", key)
	}
	return i.optional(key)
}

// optional is the string at key, or "".
func (i Info) optional(key string) (string, error) {
	switch v := i.Data[key].(type) {
	case nil:
		return "", nil
	case string:
		if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }) {
			return "", invalid("data.%s: it has control characters", key)
		}
		return v, nil
	}
	return "", invalid("data.%s: not a string", key)
}

// number takes 1 and "1", as drivers write both.
func number(v any) (uint64, error) {
	text := fmt.Sprint(v)
	n, err := strconv.ParseUint(text, 10, 48)
	if _, isBool := v.(bool); err != nil || isBool {
		return 0, errors.New("not a number")
	}
	return n, nil
}

// number is the number at key, which must be there.
func (i Info) number(key string) (uint64, error) {
	if !i.has(key) {
		return 0, invalid("data.%s is missing", key)
	}
	n, err := number(i.Data[key])
	if err != nil {
		return 0, invalid("data.%s: %w", key, err)
	}
	return n, nil
}

// list is the array at key; one bare value is an array of it.
func (i Info) list(key string) []any {
	switch v := i.Data[key].(type) {
	case nil:
		return nil
	case []any:
		return v
	default:
		return []any{v}
	}
}

// texts is the array of strings at key.
func (i Info) texts(key string) ([]string, error) {
	var all []string
	for _, v := range i.list(key) {
		s, ok := v.(string)
		if !ok {
			return nil, invalid("data.%s: not all are strings", key)
		}
		all = append(all, s)
	}
	return all, nil
}

// flag is the boolean at key; oVirt's documents have "True", too.
func (i Info) flag(key string) bool {
	switch v := i.Data[key].(type) {
	case bool:
		return v
	case string:
		return strings.EqualFold(v, "true")
	}
	return false
}

// word says whether s is of ASCII letters, digits and the characters of more,
// does not begin with a hyphen or a dot, and is short enough for a name.
func word(s, more string) bool {
	if s == "" || len(s) > 255 || s[0] == '-' || s[0] == '.' {
		return false
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(more, r)) {
			return false
		}
	}
	return true
}

func adapterName(s string) bool { return word(s, "_-") }

// unsupported is for a form that is understood and not done.
func unsupported(format string, args ...any) error {
	return failure.New(failure.Precondition, "%w: %w", ErrUnsupported, fmt.Errorf(format, args...))
}
