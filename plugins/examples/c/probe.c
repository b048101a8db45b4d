// Is the redis well? It is when it answers PING. Argument: --port=6379.

#include <string.h>

#include "probe.h"

static bool answer(probe_outcome_t *ret, uint8_t verdict, const void *text, size_t length) {
  ret->verdict = verdict;
  probe_string_dup_n(&ret->message, text, length);
  return true;
}

// A failed check, whatever went wrong; a missing grant is the operator's.
static bool failed(wherry_plugin_tcp_tcp_error_t *error, probe_outcome_t *ret, probe_probe_error_t *err) {
  if (error->tag == WHERRY_PLUGIN_TCP_TCP_ERROR_DENIED) {
    err->tag = WHERRY_PLUGIN_OUTCOMES_PROBE_ERROR_DENIED;
    err->val.denied = error->val.denied;
    return false;
  }
  return answer(ret, WHERRY_PLUGIN_OUTCOMES_VERDICT_FAILURE, error->val.other.ptr, error->val.other.len);
}

// --port=1 to --port=65535.
static bool read_port(const probe_string_t *argument, uint16_t *port) {
  uint32_t number = 0;
  for (size_t i = strlen("--port="); i < argument->len; i++) {
    if (argument->ptr[i] < '0' || argument->ptr[i] > '9' || number > 65535) return false;
    number = number * 10 + (argument->ptr[i] - '0');
  }
  *port = number;
  return number >= 1 && number <= 65535;
}

bool exports_probe_check(probe_list_string_t *arguments, probe_outcome_t *ret, probe_probe_error_t *err) {
  uint16_t port = 6379;
  for (size_t i = 0; i < arguments->len; i++) {
    probe_string_t *argument = &arguments->ptr[i];
    bool is_port = argument->len >= 7 && memcmp(argument->ptr, "--port=", 7) == 0;
    if (is_port && !read_port(argument, &port)) {
      err->tag = WHERRY_PLUGIN_OUTCOMES_PROBE_ERROR_INVALID_ARGUMENTS;
      err->val.invalid_arguments = *argument;
      return false;
    }
  }
  probe_string_t ip;
  wherry_plugin_target_ip(&ip);
  wherry_plugin_tcp_own_connection_t redis;
  wherry_plugin_tcp_tcp_error_t error;
  if (!wherry_plugin_tcp_static_connection_open(&ip, port, &redis, &error)) return failed(&error, ret, err);

  wherry_plugin_tcp_borrow_connection_t borrowed = wherry_plugin_tcp_borrow_connection(redis);
  probe_list_u8_t ping = {(uint8_t *)"PING\r\n", 6}, said;
  if (!wherry_plugin_tcp_method_connection_write(borrowed, &ping, &error)) return failed(&error, ret, err);
  if (!wherry_plugin_tcp_method_connection_read(borrowed, 7, &said, &error)) return failed(&error, ret, err);
  wherry_plugin_tcp_connection_drop_own(redis);

  if (said.len == 7 && memcmp(said.ptr, "+PONG\r\n", 7) == 0)
    return answer(ret, WHERRY_PLUGIN_OUTCOMES_VERDICT_SUCCESS, "PONG", 4);
  return answer(ret, WHERRY_PLUGIN_OUTCOMES_VERDICT_FAILURE, said.ptr, said.len);
}
