// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// masked stands where a secret was.
const masked = "***"

// fileSuffix makes a key name the file that holds the secret:
// "auth_password_file" instead of "auth_password".
const fileSuffix = "_file"

// isSecret says whether the value at a key of connection data is one. The
// names are those of Cinder's drivers; secret_type and secret_uuid only say
// where libvirt keeps one.
func isSecret(key string) bool {
	key = strings.ToLower(key)
	if key == "secret_type" || key == "secret_uuid" || strings.HasSuffix(key, fileSuffix) {
		return false
	}
	for _, part := range []string{"password", "passwd", "keyring", "secret", "token", "credential", "passphrase", "psk", "apikey"} {
		if strings.Contains(key, part) {
			return true
		}
	}
	return key == "key" || strings.HasSuffix(key, "_key")
}

// Redact returns the JSON with each secret masked. What is not JSON becomes null.
func Redact(raw []byte) json.RawMessage {
	var v any
	if decode(raw, &v) != nil {
		return json.RawMessage("null")
	}
	out, err := json.Marshal(redact(v))
	if err != nil {
		return json.RawMessage("null")
	}
	return out
}

func redact(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, value := range v {
			if isSecret(key) && value != nil {
				out[key] = masked
			} else {
				out[key] = redact(value)
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = redact(v[i])
		}
		return out
	}
	return v
}

// secretsOf collects every secret below v.
func secretsOf(v any, found []string) []string {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if isSecret(key) {
				found = append(found, leaves(value)...)
			} else {
				found = secretsOf(value, found)
			}
		}
	case []any:
		for _, each := range v {
			found = secretsOf(each, found)
		}
	}
	return found
}

func leaves(v any) []string {
	switch v := v.(type) {
	case nil:
		return nil
	case map[string]any:
		var all []string
		for _, each := range v {
			all = append(all, leaves(each)...)
		}
		return all
	case []any:
		var all []string
		for _, each := range v {
			all = append(all, leaves(each)...)
		}
		return all
	}
	return []string{fmt.Sprint(v)}
}

// SecretFiles lists the keys of data that name a file with a secret.
func (i Info) SecretFiles() []string {
	var keys []string
	for key := range i.Data {
		if base, ok := strings.CutSuffix(key, fileSuffix); ok && isSecret(base) {
			keys = append(keys, "data."+key)
		}
	}
	return keys
}

// hasSecret says whether the key, or the file for it, is there.
func (i Info) hasSecret(key string) bool { return i.has(key) || i.has(key+fileSuffix) }

// checkSecret refuses a secret, or the name of its file, that is no string.
func (i Info) checkSecret(key string) error {
	_, err1 := i.optional(key)
	_, err2 := i.optional(key + fileSuffix)
	return errors.Join(err1, err2)
}

// secret reads the secret at key, from its file where the data names one.
// From then on h's programs cannot repeat it. There is none: "".
func (h *Host) secret(i Info, key string) (string, error) {
	if i.has(key) {
		return i.optional(key)
	}
	path, err := i.optional(key + fileSuffix)
	if err != nil || path == "" {
		return "", err
	}
	value, err := readSecret(path)
	if err != nil {
		return "", fmt.Errorf("data.%s: %w", key+fileSuffix, err)
	}
	if s, ok := h.Run.(*scrubber); ok {
		s.add(value)
	}
	return value, nil
}

// maxSecret bounds a file with a secret; a keyring has some hundred bytes.
const maxSecret = 64 << 10

// readSecret reads a file that nobody but its owner, who is us or root, can.
func readSecret(path string) (string, error) {
	if !strings.HasPrefix(path, "/") {
		return "", failure.New(failure.Usage, "%q: not an absolute path", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", failure.Wrap(failure.Precondition, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o077 != 0 || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		err := failure.New(failure.Precondition, "%s: not a file that only root can read", path)
		return "", failure.Hint(err, "run `chown root: %[1]s && chmod 600 %[1]s`", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	switch {
	case err != nil:
		return "", err
	case len(text) > maxSecret:
		return "", failure.New(failure.Precondition, "%s: more than %d bytes", path, maxSecret)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// scrubber is a Runner whose programs can say no secret: what they wrote to
// stderr is masked before anybody sees it. It logs what it runs, since a
// Runner that logs would do so before the mask.
type scrubber struct {
	next command.Runner
	log  *slog.Logger

	mu    sync.Mutex
	words []string
}

// unlogged takes its own log from the Runner that has one.
func unlogged(r command.Runner) command.Runner {
	if _, ok := r.(command.System); ok {
		return command.System{}
	}
	return r
}

func (s *scrubber) add(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.words = append(s.words, secret)
}

// Run implements command.Runner.
func (s *scrubber) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	began := time.Now()
	result, err := s.next.Run(ctx, cmd)
	result.Stderr = []byte(s.scrub(string(result.Stderr)))
	var failed *command.Error
	if errors.As(err, &failed) {
		clean := *failed
		clean.Stderr = s.scrub(failed.Stderr)
		err = &clean
	}
	if s.log != nil {
		attrs := []any{"argv", cmd.String(), "took", time.Since(began).Round(time.Millisecond)}
		if err != nil {
			attrs = append(attrs, "err", err)
		}
		s.log.DebugContext(ctx, "ran", attrs...)
	}
	return result, err
}

// scrub masks each secret in text, each as it is and as JSON writes it, and of
// a file such as a keyring each value by itself.
func (s *scrubber) scrub(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range s.words {
		for _, form := range forms(secret) {
			text = strings.ReplaceAll(text, form, masked)
		}
	}
	return text
}

func forms(secret string) []string {
	const shortest = 3 // masking each "a" would hide no secret, only the message
	var all []string
	add := func(word string) {
		if len(word) < shortest {
			return
		}
		all = append(all, word)
		if quoted, err := json.Marshal(word); err == nil {
			all = append(all, string(quoted[1:len(quoted)-1]))
		}
	}
	add(secret)
	for _, line := range strings.Split(secret, "\n") {
		if _, value, ok := strings.Cut(line, "="); ok && strings.Contains(secret, "\n") {
			add(strings.TrimSpace(value))
		}
	}
	return all
}
