-- Written by compile_calls() from the plans; see sql/routines/54_fast_path.sql.

CREATE OR REPLACE FUNCTION darkpearl.call_effect(p_function text, p_warehouse_ids uuid[], p_saga_ids uuid[], p_effects text[])
 RETURNS void
 LANGUAGE plpgsql
AS $function$
declare
    v_void text;  -- An assignment does without the executor, which PERFORM starts.
begin
    case p_function
        when 'move_goods' then
            v_void := move_goods(p_warehouse_ids, p_saga_ids, p_effects);
        when 'put_back_transfers' then
            v_void := put_back_transfers(p_warehouse_ids, p_saga_ids, p_effects);
        when 'send_parcels' then
            v_void := send_parcels(p_warehouse_ids, p_saga_ids, p_effects);
        else
            v_void := call_effect_by_name(p_function, p_warehouse_ids, p_saga_ids, p_effects);
    end case;
end
$function$;

CREATE OR REPLACE FUNCTION darkpearl.call_step(p_function text, p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[] DEFAULT NULL::jsonb[])
 RETURNS outcome_group[]
 LANGUAGE plpgsql
AS $function$
begin
    case p_function
        when 'await_last_parcel' then
            return await_last_parcel(p_warehouse_ids, p_saga_ids);
        when 'await_parcel' then
            return await_parcel(p_warehouse_ids, p_saga_ids);
        when 'await_payment' then
            return await_payment(p_warehouse_ids, p_saga_ids);
        when 'goods_have_left' then
            return goods_have_left(p_warehouse_ids, p_saga_ids);
        when 'hear_of_payment' then
            return hear_of_payment(p_warehouse_ids, p_saga_ids, p_answers);
        when 'record_arrival' then
            return record_arrival(p_warehouse_ids, p_saga_ids, p_answers);
        when 'record_authorization' then
            return record_authorization(p_warehouse_ids, p_saga_ids, p_answers);
        when 'record_call_back' then
            return record_call_back(p_warehouse_ids, p_saga_ids, p_answers);
        when 'record_capture' then
            return record_capture(p_warehouse_ids, p_saga_ids, p_answers);
        when 'record_first_parcel' then
            return record_first_parcel(p_warehouse_ids, p_saga_ids, p_answers);
        when 'record_parcel' then
            return record_parcel(p_warehouse_ids, p_saga_ids, p_answers);
        when 'record_payment' then
            return record_payment(p_warehouse_ids, p_saga_ids, p_answers);
        when 'record_refund' then
            return record_refund(p_warehouse_ids, p_saga_ids, p_answers);
        when 'record_void' then
            return record_void(p_warehouse_ids, p_saga_ids, p_answers);
        when 'request_arrival' then
            return request_arrival(p_warehouse_ids, p_saga_ids);
        when 'request_authorization' then
            return request_authorization(p_warehouse_ids, p_saga_ids);
        when 'request_call_back' then
            return request_call_back(p_warehouse_ids, p_saga_ids);
        when 'request_capture' then
            return request_capture(p_warehouse_ids, p_saga_ids);
        when 'request_payment' then
            return request_payment(p_warehouse_ids, p_saga_ids);
        when 'request_refund' then
            return request_refund(p_warehouse_ids, p_saga_ids);
        when 'request_void' then
            return request_void(p_warehouse_ids, p_saga_ids);
        when 'reserve_stock' then
            return reserve_stock(p_warehouse_ids, p_saga_ids);
        else
            return call_step_by_name(p_function, p_warehouse_ids, p_saga_ids, p_answers);
    end case;
end
$function$;
