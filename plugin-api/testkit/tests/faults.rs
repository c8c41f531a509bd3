//! Each way to break the contract is found: one test per fault.

mod mini;

use tenon_abi::PluginDescV1;
use tenon_testkit::{BaseSpec, Conformance, Fault, Report};

fn run(suite: Conformance, checks: &[&str], plugin: fn() -> *const PluginDescV1) -> Report {
    let report = suite.seeds(2).only(checks).check(plugin);
    println!("{report}");
    report
}

fn ram(fault: &str, checks: &[&str]) -> Report {
    let params = format!(r#"{{"name":"m0","size":262144,"block_size":512,"fault":"{fault}"}}"#);
    run(Conformance::new(&params), checks, mini::ram::plugin)
}

fn pass(fault: &str, checks: &[&str]) -> Report {
    let params = format!(r#"{{"name":"p0","base":"b0","fault":"{fault}"}}"#);
    run(Conformance::new(&params).bases(&[BaseSpec::new("b0", 512, 512)]), checks, mini::pass::plugin)
}

fn pass_module(fault: &str, checks: &[&str]) -> Report {
    let suite = Conformance::new(r#"{"name":"p0","base":"b0"}"#).bases(&[BaseSpec::new("b0", 512, 512)]);
    run(suite.module_config(&format!(r#"{{"fault":"{fault}"}}"#)), checks, mini::pass::plugin)
}

/// The module that does `fault` must be told from a good one by this violation.
#[track_caller]
fn finds(report: &Report, fault: Fault) {
    assert!(report.has_fault(fault), "{fault:?} was not found: {:?}", report.failed());
}

/// The module must fail exactly this check.
#[track_caller]
fn fails(report: &Report, check: &str) {
    assert_eq!(report.failed_checks(), [check], "{:?}", report.failed());
}

macro_rules! violations {
    ($($name:ident: $module:ident($fault:literal, $checks:expr) => $found:ident;)*) => {$(
        #[test]
        fn $name() {
            finds(&$module($fault, &$checks), Fault::$found);
        }
    )*};
}

macro_rules! wrong_behaviour {
    ($($name:ident: $module:ident($fault:literal) => $check:literal;)*) => {$(
        #[test]
        fn $name() {
            fails(&$module($fault, &[$check]), $check);
            assert!(fails_nothing_else($check), "the check fails for good modules too");
        }
    )*};
}

/// The check passes a module without fault, so that its failure means something.
fn fails_nothing_else(check: &str) -> bool {
    ram("", &[check]).failed().is_empty() && pass("", &[check]).failed().is_empty()
}

violations! {
    a_double_completion_is_found: ram("double_complete", ["read_back"]) => DoubleCompletion;
    a_double_completion_after_abort_is_found: ram("abort_twice", ["abort"]) => DoubleCompletion;
    a_completion_of_another_io_is_found: ram("swapped_done", ["model"]) => ForeignCompletion;
    a_completion_on_a_foreign_thread_is_found: ram("wrong_thread", ["read_back"]) => WrongThread;
    a_completion_on_another_reactor_is_found: ram("wrong_reactor", ["read_back"]) => WrongThread;
    a_control_call_on_a_data_reactor_is_found: ram("call_elsewhere", ["read_back"]) => WrongThread;
    a_lost_io_is_found: ram("lose_io", ["model"]) => IoLost;
    an_impossible_status_is_found: ram("bad_status", ["read_back"]) => BadCompletion;
    changed_request_fields_are_found: ram("changed_request", ["read_back"]) => BadCompletion;
    a_write_behind_the_payload_is_found: ram("overrun", ["read_back"]) => PayloadOverrun;
    a_write_behind_the_driver_context_is_found: ram("context_overrun", ["read_back"]) => PayloadOverrun;
    a_driver_context_declared_too_small_is_found: pass("small_context", ["read_back"]) => PayloadOverrun;
    a_modified_write_payload_is_found: ram("modified_payload", ["read_back"]) => PayloadModified;
    a_write_after_completion_is_found: ram("touch_later", ["read_back"]) => TouchedAfterCompletion;
    a_crooked_context_size_is_found: ram("bad_context_size", ["read_back"]) => BadDeclaration;
    a_declared_operation_that_is_refused_is_found: ram("declares_verify", ["declared_operations"]) => DeclaredButRefused;
    operations_the_base_lacks_are_found: pass("declares_everything", ["base_with_few_operations"]) => DeclaredButRefused;
    leaked_memory_is_found: ram("leak_memory", ["delete"]) => MemoryLeaked;
    a_leaked_poller_is_found: ram("leak_poller", ["read_back"]) => PollerLeaked;
    a_leaked_timer_is_found: ram("leak_timer", ["identity"]) => TimerLeaked;
    a_leaked_channel_is_found: pass("leak_channel", ["read_back"]) => ChannelLeaked;
    a_channel_put_twice_is_found: pass("put_twice", ["read_back"]) => UseAfterPut;
    a_leaked_descriptor_is_found: pass("leak_descriptor", ["identity"]) => DescriptorLeaked;
    a_leaked_claim_is_found: pass("leak_descriptor", ["identity"]) => ClaimLeaked;
    a_descriptor_leaked_by_a_failed_create_is_found: pass("leak_on_failure", ["name_taken"]) => DescriptorLeaked;
    a_forgotten_create_token_is_found: ram("forget_token", ["identity"]) => TokenForgotten;
    a_create_token_answered_twice_is_found: ram("answer_twice", ["identity"]) => TokenAnsweredTwice;
    a_destruct_token_answered_twice_is_found: ram("destruct_twice", ["identity"]) => TokenAnsweredTwice;
    an_ignored_destruct_is_found: ram("ignore_destruct", ["identity"]) => TokenForgotten;
    a_device_that_stays_is_found: ram("ignore_destruct", ["identity"]) => DeviceLeaked;
    a_fini_that_is_not_answered_is_found: ram("stubborn_fini", ["identity"]) => TokenForgotten;
    an_ignored_removal_is_found: pass("ignore_remove", ["base_removal"]) => RemovalIgnored;
    a_forgotten_examine_config_is_found: pass_module("forget_examine_config", ["identity"]) => TokenForgotten;
    a_forgotten_examine_disk_is_found: pass_module("forget_examine_disk", ["identity"]) => TokenForgotten;
    an_examine_token_answered_twice_is_found: pass_module("examine_twice", ["identity"]) => TokenAnsweredTwice;
    a_claim_that_was_not_taken_is_found: pass_module("false_claim", ["identity"]) => BadCall;
    a_forbidden_call_in_init_is_found: pass_module("busy_init", ["identity"]) => WrongThread;
}

wrong_behaviour! {
    wrong_data_fails_read_back: ram("wrong_data") => "read_back";
    wrong_data_fails_the_model: ram("wrong_data") => "model";
    a_device_that_never_has_room_fails_read_back: ram("always_nomem") => "read_back";
    a_device_short_by_a_block_fails_bounds: ram("short_by_one") => "bounds";
    a_flush_that_needs_a_range_fails_flush: ram("flush_needs_range") => "flush";
    zeroes_that_are_not_written_fail_write_zeroes: ram("lazy_zeroes") => "write_zeroes";
    an_unmap_that_takes_too_much_fails_unmap: ram("greedy_unmap") => "unmap";
    a_compare_that_does_not_look_fails_compare: ram("blind_compare") => "compare";
    lent_memory_that_changes_fails_lent_reads: ram("unstable_lent") => "lent_reads";
    text_that_is_no_json_fails_dump_json: ram("bad_dump") => "dump_json";
    statistics_that_are_no_object_fail_dump_json: ram("bad_stats") => "dump_json";
    parameters_saved_wrongly_fail_config_round_trip: ram("wrong_config") => "config_round_trip";
    a_missing_base_without_its_name_fails_missing_base: pass("nameless_error") => "missing_base";
    a_device_that_does_not_grow_fails_resize: pass("ignore_resize") => "resize";
    a_failed_create_that_keeps_its_base_fails_name_taken: pass("leak_on_failure") => "name_taken";
}

#[test]
fn errors_of_a_base_that_are_hidden_fail_base_errors() {
    fails(&pass_module("swallow_errors", &["base_errors"]), "base_errors");
}
